/* The smallest app there can be: listens on $PORT, sleeps in accept(), and answers every request with the time
 * (microseconds since 1970) at which it began to listen. One connection at a time, closed after its answer. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

int main(void) {
    const char *port = getenv("PORT");
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port ? atoi(port) : 8000),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int one = 1, server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 128)) return 1;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    char body[32], answer[160], request[8192];
    int size = snprintf(body, sizeof body, "%lld", now.tv_sec * 1000000LL + now.tv_nsec / 1000);
    size = snprintf(answer, sizeof answer,
                    "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", size, body);
    for (;;) {
        int client = accept(server, NULL, NULL);
        if (client < 0) continue;
        if (read(client, request, sizeof request) > 0) send(client, answer, size, MSG_NOSIGNAL);
        close(client);
    }
}
