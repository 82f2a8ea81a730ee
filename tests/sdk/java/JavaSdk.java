import io.modelcontextprotocol.client.McpClient;
import io.modelcontextprotocol.client.transport.HttpClientStreamableHttpTransport;
import io.modelcontextprotocol.json.McpJsonDefaults;
import io.modelcontextprotocol.spec.McpSchema.CallToolRequest;
import io.modelcontextprotocol.spec.McpSchema.Tool;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.time.Duration;
import java.util.Map;

/** Client of Maven's io.modelcontextprotocol.sdk:mcp; driver.py says how the two speak. */
class JavaSdk {
    static void say(String key, Object value) throws Exception {
        System.out.println(McpJsonDefaults.getMapper().writeValueAsString(Map.of(key, value)));
    }

    @SuppressWarnings("unchecked")
    public static void main(String[] arguments) throws Exception {
        var url = URI.create(arguments[0]);
        var transport = HttpClientStreamableHttpTransport.builder(url.resolve("/").toString()).endpoint(url.getPath()).build();
        // A little less than checks.py waits, so that the words of the library are told.
        try (var client = McpClient.sync(transport).requestTimeout(Duration.ofSeconds(19)).build()) {
            say("protocol", client.initialize().protocolVersion());
            var lines = new BufferedReader(new InputStreamReader(System.in, "UTF-8"));
            for (String line; (line = lines.readLine()) != null; ) {
                var request = McpJsonDefaults.getMapper().readValue(line, Map.class);
                try {
                    if (request.containsKey("list")) {
                        say("tools", client.listTools().tools().stream().map(Tool::name).toList());
                    } else {
                        var args = (Map<String, Object>) request.get("args");
                        say("result", client.callTool(new CallToolRequest((String) request.get("call"), args)));
                    }
                } catch (Exception error) {
                    say("error", error.toString());
                }
            }
        }
    }
}
