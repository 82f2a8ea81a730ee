//! What the file may say, and what is said of what is wrong.

use super::*;

fn error(text: &str) -> String {
    OperatorConfig::read(text).unwrap_err().to_string()
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = OperatorConfig::read("").unwrap();
    assert_eq!(config, OperatorConfig::default());
    assert_eq!(config, OperatorConfig::read("sidecar: {}\ncertificates: {}").unwrap());
    assert_eq!(config.sidecar.image, "ghcr.io/toolweir/sidecar:0.1.0");
    assert_eq!(config.sidecar.resources.limits.memory.unwrap().as_str(), "64Mi");
    assert_eq!(config.sidecar.resources.limits.cpu, None);
    assert_eq!(config.certificates.leaf_life, Duration::from_secs(86400));
}

#[test]
fn every_field_is_read() {
    let text = "
        sidecar:
          image: localhost/toolweir-sidecar:e2e
          imagePullPolicy: Never
          resources: {requests: {cpu: 1, memory: 32Mi}, limits: {cpu: 1.5, memory: 128Mi}}
          logLevel: off
          tokenExpirationSeconds: 600
          scrapeAnnotations: true
        protectedNamespaces: [monitoring]
        sharedStore:
          url: rediss://store.example:6380
          username: toolweir
          passwordFile: /etc/store/password
          caFile: /etc/store/ca.crt
          prefix: team
          leases: false
          budgetMilliseconds: 20
        webhooks: {clientCaFile: /etc/client-ca/ca.crt, clientNames: [kube-apiserver]}
        certificates: {caLife: 2m, leafLife: 1m}";
    let config = OperatorConfig::read(text).unwrap();
    assert_eq!((config.sidecar.image_pull_policy, config.sidecar.log_level), (PullPolicy::Never, SidecarLogLevel::Off));
    let limits = config.sidecar.resources.limits.clone();
    assert_eq!((limits.cpu.unwrap().as_str(), limits.memory.unwrap().as_str()), ("1.5", "128Mi"));
    assert_eq!(config.sidecar.token_expiration_seconds, 600);
    assert!(config.sidecar.scrape_annotations);
    let store = config.shared_store.as_ref().unwrap();
    assert_eq!(store.password_file.as_deref(), Some("/etc/store/password".as_ref()));
    assert_eq!(store.ca_file.as_deref(), Some("/etc/store/ca.crt".as_ref()));
    let sent = store.for_sidecars(Some("secret".to_owned()), None);
    assert_eq!((sent.url.as_str(), sent.username.as_deref()), ("rediss://store.example:6380", Some("toolweir")));
    assert_eq!((sent.prefix.as_str(), sent.leases, sent.budget_milliseconds), ("team", false, 20));
    assert_eq!((config.certificates.ca_life.as_secs(), config.certificates.leaf_life.as_secs()), (120, 60));
    let webhooks =
        WebhooksConfig { client_ca_file: Some("/etc/client-ca/ca.crt".into()), client_names: vec!["kube-apiserver".to_owned()] };
    assert_eq!(config.webhooks, webhooks);
    for namespace in ["monitoring", "kube-system", "kube-public", "kube-node-lease", "toolweir-system"] {
        assert!(config.protects(namespace, "toolweir-system"), "{namespace}");
    }
    assert!(!config.protects("agents", "toolweir-system"));
}

#[test]
fn capture_and_ports_are_read() {
    let config = OperatorConfig::default();
    assert_eq!(config.capture.method, CaptureMethod::None);
    assert_eq!(config.capture.user_range, IdRange { first: 1024, last: 65535 });
    let text = "
        sidecar: {ports: {admin: 16000, proxy: 16001, metrics: 16020, capture: 16002}}
        capture:
          method: Init
          privateCidrs: [203.0.113.0/24, 198.51.100.7/32, '2001:db8::/32', '::/0', 0.0.0.0/0, '2001:db8::1/128']
          userRange: 1000680000-1000689999";
    let config = OperatorConfig::read(text).unwrap();
    assert_eq!(config.sidecar.ports, SidecarPorts { admin: 16000, proxy: 16001, metrics: 16020, capture: 16002 });
    assert_eq!((config.capture.method, config.capture.private_cidrs.len()), (CaptureMethod::Init, 6));
    assert!(config.capture.user_range.contains(1_000_689_999) && !config.capture.user_range.contains(65_535));
}

#[test]
fn a_shared_store_needs_no_more_than_its_url() {
    let config = OperatorConfig::read("sharedStore: {url: 'redis://store'}").unwrap();
    let store = config.shared_store.unwrap();
    assert_eq!((store.username, store.password_file, store.ca_file, store.certificate), (None, None, None, None));
    assert_eq!((store.prefix.as_str(), store.leases, store.budget_milliseconds), ("toolweir", true, 50));
    assert_eq!(OperatorConfig::read("sharedStore: null").unwrap().shared_store, None);
    let config =
        OperatorConfig::read("sharedStore: {url: 'rediss://store', certificate: {secret: store-tls, service: store}}").unwrap();
    let certificate = config.shared_store.unwrap().certificate.unwrap();
    assert_eq!((certificate.secret.as_str(), certificate.service.as_str()), ("store-tls", "store"));
}

#[test]
fn resources_that_are_named_replace_the_defaults() {
    let config = OperatorConfig::read("sidecar: {resources: {requests: {}, limits: {}}}").unwrap();
    assert_eq!(
        config.sidecar.resources,
        SidecarResources { requests: ResourceAmounts::default(), limits: ResourceAmounts::default() }
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn what_is_wrong_is_named_with_its_field() {
    for (text, promised) in [
        ("side: {}", "unknown field `side`"),
        ("webhooks: {clientNames: [a]}", "webhooks.clientNames: is given without webhooks.clientCaFile"),
        ("webhooks: {clientCaFile: a, clientNames: [a, '']}", "webhooks.clientNames[1]: is empty"),
        ("webhooks: {clientCA: a}", "webhooks: unknown field `clientCA`"),
        ("sidecar: {images: a}", "sidecar: unknown field `images`"),
        ("sidecar: {image: ''}", "sidecar.image: `` is not an image; write for example"),
        ("sidecar: {image: 'a b'}", "sidecar.image: `a b` is not an image"),
        ("sidecar: {imagePullPolicy: Sometimes}", "unknown variant `Sometimes`, expected one of `Always`"),
        ("sidecar: {resources: {limits: {cpu: lots}}}", "limits.cpu: `lots` is not a quantity; write for example 500m"),
        ("sidecar: {resources: {limits: {gpu: 1}}}", "unknown field `gpu`"),
        ("sidecar: {resources: {limits: {cpu: 0}}}", "sidecar.resources.limits.cpu: is 0; a limit is more than nothing"),
        ("sidecar: {resources: {limits: {memory: 64m}}}", "sidecar.resources.limits.memory: is 64m, too little"),
        (
            "sidecar: {resources: {requests: {memory: 1Gi}, limits: {memory: 64Mi}}}",
            "sidecar.resources.limits.memory: is 64Mi, less than the request, 1Gi; raise it, or lower sidecar.resources.requests.memory",
        ),
        ("sidecar: {logLevel: verbose}", "unknown variant `verbose`"),
        ("sidecar: {scrapeAnnotations: often}", "sidecar.scrapeAnnotations: invalid type: string \"often\", expected a boolean"),
        ("sidecar: {credentialsSecret: Tokens}", "sidecar.credentialsSecret: `Tokens` is not the name of a Secret"),
        ("sidecar: {tokenAudiences: [mcp, toolweir]}", "sidecar.tokenAudiences[1]: `toolweir` is the audience of the sidecar's"),
        ("sidecar: {tokenAudiences: [mcp, mcp]}", "sidecar.tokenAudiences[1]: `mcp` is there twice"),
        ("sidecar: {tokenExpirationSeconds: 60}", "sidecar.tokenExpirationSeconds: is 60; from 600 to"),
        ("sidecar: {ports: {http: 1}}", "sidecar.ports: unknown field `http`"),
        ("sidecar: {ports: {admin: 80}}", "sidecar.ports.admin: is 80; from 1024 to 65535 are possible"),
        ("sidecar: {ports: {proxy: 70000}}", "sidecar.ports.proxy: invalid value"),
        ("sidecar: {ports: {metrics: 15001}}", "sidecar.ports.metrics: is 15001, as sidecar.ports.proxy is; each needs its own"),
        ("capture: {method: Ebpf}", "unknown variant `Ebpf`, expected `None` or `Init`"),
        ("capture: {userRange: all}", "capture: userRange: `all` is not a range of user ids; write for example 1024-65535"),
        ("capture: {userRange: '+1024-65535'}", "is not a range of user ids"),
        ("capture: {userRange: 0-65535}", "capture.userRange: is 0-65535; write at least 256 ids from 1 to 2147483647"),
        ("capture: {userRange: 2000-2254}", "capture.userRange: is 2000-2254; write at least 256 ids"),
        ("capture: {userRange: 3000-2000}", "capture.userRange: is 3000-2000; write at least 256 ids"),
        ("capture: {privateCidrs: [10.0.0.1]}", "capture.privateCidrs[0]: `10.0.0.1` is not an address range"),
        ("capture: {privateCidrs: [10.0.0.0/33]}", "capture.privateCidrs[0]: `10.0.0.0/33` is not an address range"),
        (
            "capture: {privateCidrs: [fd00::/8, 10.0.0.1/8]}",
            "capture.privateCidrs[1]: `10.0.0.1/8` has bits after its prefix; write the first address of the range",
        ),
        ("capture: {privateCidrs: ['fd00::1/64']}", "capture.privateCidrs[0]: `fd00::1/64` has bits after its prefix"),
        ("capture: {extraRoots: none}", "capture.extraRoots: has no certificate; write the authorities' certificates in PEM"),
        (
            "capture: {extraRoots: '-----BEGIN ENCRYPTED PRIVATE KEY-----'}",
            "capture.extraRoots: has a private key, which every pod would show; write the certificates alone",
        ),
        (
            "capture: {extraRoots: \"-----BEGIN CERTIFICATE-----\\nMIIB\\n-----END CERTIFICATE-----\\n\"}",
            "capture.extraRoots: certificate 1 cannot be used: ",
        ),
        ("capture: {extraRoots: \"-----BEGIN CERTIFICATE-----\\nMIIB\\n\"}", "; write that of an authority, in PEM"),
        (&format!("capture: {{extraRoots: {}}}", "x".repeat(65537)), "capture.extraRoots: has 65537 bytes; write at most 65536"),
        ("protectedNamespaces: [Kube]", "protectedNamespaces[0]: `Kube` is not the name of a namespace"),
        ("certificates: {caLife: soon}", "certificates: `soon` is not a duration; write for example 365d"),
        ("certificates: {leafLife: 5s}", "certificates.leafLife must be from 10s to caLife, for example 24h; it is 5s"),
        ("certificates: {caLife: 101years}", "certificates.caLife must be from 1m to 20 years"),
        (
            "certificates: {caLife: 1h, leafLife: 2h}",
            "certificates.leafLife must be from 10s to caLife, for example 24h; it is 2h",
        ),
        ("sharedStore: true", "sharedStore: invalid type: boolean `true`"),
        ("sharedStore: {}", "sharedStore: missing field `url`"),
        ("sharedStore: {url: 'redis://s', password: x}", "sharedStore: unknown field `password`"),
        ("sharedStore: {url: 'http://s'}", "sharedStore.url: "),
        ("sharedStore: {url: 'redis://:secret@s'}", "sharedStore.url: the store's url has a user or a password in it"),
        ("sharedStore: {url: 'redis://s', prefix: ''}", "sharedStore.prefix: `` is not a valid prefix of keys"),
        ("sharedStore: {url: 'redis://s', prefix: '{a}'}", "sharedStore.prefix: `{a}` is not a valid prefix of keys"),
        ("sharedStore: {url: 'redis://s', caFile: /ca}", "sharedStore.caFile: is given, and sharedStore.url is without TLS"),
        ("sharedStore: {url: 'redis://s', certificate: {secret: a}}", "sharedStore.certificate: missing field `service`"),
        (
            "sharedStore: {url: 'redis://s', certificate: {secret: a, service: b}}",
            "sharedStore.certificate: is given, and sharedStore.url is without TLS",
        ),
        (
            "sharedStore: {url: 'rediss://s', caFile: /ca, certificate: {secret: a, service: b}}",
            "sharedStore.certificate: is given, and so is sharedStore.caFile",
        ),
        (
            "sharedStore: {url: 'rediss://s', certificate: {secret: a/b, service: b}}",
            "sharedStore.certificate.secret: `a/b` is not the name of a secret",
        ),
        ("sharedStore: {url: 'redis://s', username: ''}", "sharedStore.username: `` is not the name of an ACL user"),
        (
            "sharedStore: {url: 'redis://s', budgetMilliseconds: 0}",
            "sharedStore.budgetMilliseconds: is 0; from 1 to 10000 are possible",
        ),
        ("[1]", "invalid type: sequence"),
    ] {
        let error = error(text);
        assert!(error.contains(promised), "{text} gives {error:?}");
        assert!(!error.contains(char::is_control), "{error:?}");
    }
}

#[test]
fn roots_of_ones_own_are_certificates_in_pem() {
    let root = include_str!("../../tests/root.pem");
    for roots in [String::new(), root.to_owned(), format!("# ours\n{root}\nand another:\n{root}")] {
        let config = format!("capture: {}", serde_json::json!({"extraRoots": roots}));
        assert_eq!(OperatorConfig::read(&config).unwrap().capture.extra_roots, roots);
    }
    let second = serde_json::json!({"extraRoots": format!("{root}{}", root.replace("MII", "AII"))});
    let error = OperatorConfig::read(&format!("capture: {second}")).unwrap_err().to_string();
    assert!(error.starts_with("capture.extraRoots: certificate 2 cannot be used: "), "{error}");
}
