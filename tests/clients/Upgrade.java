import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.List;
import java.util.stream.Stream;

/** Sends requests with the defaults of Java's HttpClient, which offers HTTP/2 in the first request of a connection. */
class Upgrade {
    public static void main(String[] arguments) throws Exception {
        URI uri = URI.create(arguments[0] + "/v1/chat/completions");
        String plain = arguments[1];
        String stream = arguments[2];
        byte[] bytes = plain.getBytes("UTF-8");
        // A publisher without a length sends a chunked body.
        BodyPublisher chunked = BodyPublishers.ofByteArrays(List.of(bytes));
        for (BodyPublisher body : List.of(BodyPublishers.ofString(plain), BodyPublishers.ofString(plain), chunked)) {
            HttpResponse<String> answer = HttpClient.newHttpClient().send(request(uri, body), BodyHandlers.ofString());
            System.out.println(answer.version() + " " + answer.statusCode() + " " + answer.body());
        }
        HttpClient client = HttpClient.newHttpClient();
        for (int turn = 0; turn < 2; turn++) {
            HttpResponse<Stream<String>> answer =
                client.send(request(uri, BodyPublishers.ofString(stream)), BodyHandlers.ofLines());
            String last = answer.body().filter(line -> !line.isEmpty()).reduce("", (before, line) -> line);
            System.out.println(answer.version() + " " + answer.statusCode() + " " + last);
        }
    }

    private static HttpRequest request(URI uri, BodyPublisher body) {
        return HttpRequest.newBuilder(uri).header("Content-Type", "application/json").POST(body).build();
    }
}
