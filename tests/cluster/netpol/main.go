// Command netpol enforces NetworkPolicies on one node with the controller of kube-router. The rest of kube-router (BGP, IPVS, AWS) is not
// built: it is most of the build, and this kernel lacks IPVS. The flags are kube-router's own.
package main

import (
	"flag"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/cloudnativelabs/kube-router/v2/pkg/controllers/netpol"
	"github.com/cloudnativelabs/kube-router/v2/pkg/healthcheck"
	"github.com/cloudnativelabs/kube-router/v2/pkg/options"
	"github.com/cloudnativelabs/kube-router/v2/pkg/svcip"
	"github.com/spf13/pflag"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

func main() {
	klog.InitFlags(nil)
	config := options.NewKubeRouterConfig()
	config.AddFlags(pflag.CommandLine)
	pflag.Parse()
	check("flags", flag.Set("v", config.VLevel))

	rest, err := clientcmd.BuildConfigFromFlags(config.Master, config.Kubeconfig)
	check("kubeconfig", err)
	client, err := kubernetes.NewForConfig(rest)
	check("client", err)
	factory := informers.NewSharedInformerFactory(client, 0)
	pods := factory.Core().V1().Pods().Informer()
	namespaces := factory.Core().V1().Namespaces().Informer()
	policies := factory.Networking().V1().NetworkPolicies().Informer()

	ranges, err := svcip.NewValidator(svcip.Config{ClusterIPCIDRs: config.ClusterIPCIDRs, EnableIPv4: config.EnableIPv4, EnableIPv6: config.EnableIPv6})
	check("service ranges", err)
	tables, sets, err := netpol.NewIPTablesHandlers(config)
	check("iptables and ipset", err)
	controller, err := netpol.NewNetworkPolicyController(client, config, pods, policies, namespaces, &sync.Mutex{}, nil, tables, sets, ranges)
	check("controller", err)

	stop, beats := make(chan struct{}), make(chan *healthcheck.ControllerHeartbeat, 10)
	go func() {
		for range beats {
		}
	}()
	factory.Start(stop)
	factory.WaitForCacheSync(stop)
	_, err = pods.AddEventHandler(controller.PodEventHandler)
	check("pods", err)
	_, err = namespaces.AddEventHandler(controller.NamespaceEventHandler)
	check("namespaces", err)
	_, err = policies.AddEventHandler(controller.NetworkPolicyEventHandler)
	check("policies", err)
	var running sync.WaitGroup
	running.Add(1)
	go controller.Run(beats, stop, &running)

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	<-signals
	close(stop)
	running.Wait()
}

func check(what string, err error) {
	if err != nil {
		klog.Fatalf("netpol: %s: %v", what, err)
	}
}
