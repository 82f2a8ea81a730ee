import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;

/** The HTTP client of the JDK; libraries.py says what is printed. */
public final class HttpsGet {
    private static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char letter : text.toCharArray()) {
            out.append(letter < ' ' || letter == '"' || letter == '\\' ? String.format("\\u%04x", (int) letter) : letter);
        }
        return out.append('"').toString();
    }

    private static String get(HttpClient client, String url) {
        try {
            HttpRequest request = HttpRequest.newBuilder(URI.create(url)).timeout(Duration.ofSeconds(10)).build();
            HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
            return "{\"status\": " + answer.statusCode() + ", \"text\": " + quoted(answer.body()) + "}";
        } catch (Exception error) {
            StringBuilder words = new StringBuilder();
            for (Throwable one = error; one != null; one = one.getCause()) {
                words.append(one).append(" < ");
            }
            return "{\"error\": " + quoted(words.toString()) + "}";
        }
    }

    public static void main(String[] urls) {
        HttpClient client = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(10)).build();
        for (String url : urls) {
            System.out.println(get(client, url));
        }
        System.exit(0);
    }
}
