// Client of github.com/modelcontextprotocol/go-sdk.
package main

import (
	"context"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"toolweir.dev/tests/sdk/driver"
)

func main() {
	driver.Run(func(ctx context.Context, url string) (driver.Client, error) {
		client := mcp.NewClient(&mcp.Implementation{Name: "gosdk", Version: "0"}, nil)
		session, err := client.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: url}, nil)
		if err != nil {
			return driver.Client{}, err
		}
		return driver.Client{
			Protocol: session.InitializeResult().ProtocolVersion,
			List: func(ctx context.Context) (names []string, err error) {
				for tool, err := range session.Tools(ctx, nil) {
					if err != nil {
						return nil, err
					}
					names = append(names, tool.Name)
				}
				return names, nil
			},
			Call: func(ctx context.Context, name string, args map[string]any) (any, error) {
				return session.CallTool(ctx, &mcp.CallToolParams{Name: name, Arguments: args})
			},
		}, nil
	})
}
