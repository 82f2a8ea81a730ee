// Package driver lets driver.py steer a client; that file says how the two speak.
package driver

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"time"
)

// Client is what a library offers.
type Client struct {
	Protocol string
	List     func(context.Context) ([]string, error)
	Call     func(context.Context, string, map[string]any) (any, error)
}

// Run connects to the target, then does what standard input says.
func Run(connect func(context.Context, string) (Client, error)) {
	out := json.NewEncoder(os.Stdout)
	say := func(key string, value any, err error) {
		if err != nil {
			key, value = "error", err.Error()
		}
		if err := out.Encode(map[string]any{key: value}); err != nil {
			panic(err)
		}
	}
	client, err := connect(context.Background(), os.Args[1])
	say("protocol", client.Protocol, err)
	if err != nil {
		os.Exit(1)
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var request struct {
			List bool
			Call string
			Args map[string]any
		}
		if err := json.Unmarshal(lines.Bytes(), &request); err != nil {
			panic(err)
		}
		// A little less than checks.py waits, so that the words of the library are told.
		ctx, cancel := context.WithTimeout(context.Background(), 19*time.Second)
		if request.List {
			names, err := client.List(ctx)
			say("tools", names, err)
		} else {
			result, err := client.Call(ctx, request.Call, request.Args)
			say("result", result, err)
		}
		cancel()
	}
}
