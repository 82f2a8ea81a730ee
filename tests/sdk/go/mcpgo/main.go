// Client of github.com/mark3labs/mcp-go.
package main

import (
	"context"

	"github.com/mark3labs/mcp-go/client"
	"github.com/mark3labs/mcp-go/mcp"

	"toolweir.dev/tests/sdk/driver"
)

func main() {
	driver.Run(func(ctx context.Context, url string) (driver.Client, error) {
		session, err := client.NewStreamableHttpClient(url)
		if err != nil {
			return driver.Client{}, err
		}
		if err := session.Start(ctx); err != nil {
			return driver.Client{}, err
		}
		var hello mcp.InitializeRequest
		hello.Params.ProtocolVersion = mcp.LATEST_PROTOCOL_VERSION
		hello.Params.ClientInfo = mcp.Implementation{Name: "mcpgo", Version: "0"}
		agreed, err := session.Initialize(ctx, hello)
		if err != nil {
			return driver.Client{}, err
		}
		return driver.Client{
			Protocol: agreed.ProtocolVersion,
			List: func(ctx context.Context) (names []string, err error) {
				listed, err := session.ListTools(ctx, mcp.ListToolsRequest{})
				if err != nil {
					return nil, err
				}
				for _, tool := range listed.Tools {
					names = append(names, tool.Name)
				}
				return names, nil
			},
			Call: func(ctx context.Context, name string, args map[string]any) (any, error) {
				var call mcp.CallToolRequest
				call.Params.Name, call.Params.Arguments = name, args
				return session.CallTool(ctx, call)
			},
		}, nil
	})
}
