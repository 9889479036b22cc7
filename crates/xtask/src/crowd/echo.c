/* Agrees to every upgrade and says back what it hears, for ten thousand at once: one thread, epoll. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX = 65536 };
static char agreed[MAX];
static const char YES[] = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

int main(void) {
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), loop = epoll_create1(0);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(atoi(getenv("PORT"))), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&a, sizeof a) || listen(listener, 4096)) return perror("listen"), 1;
    struct epoll_event e = { .events = EPOLLIN, .data.fd = listener }, ready[256];
    epoll_ctl(loop, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int n = epoll_wait(loop, ready, 256, -1);
        for (int i = 0; i < n; i++) {
            char data[4096];
            int fd = ready[i].data.fd;
            if (fd == listener) {
                int c = accept(listener, NULL, NULL);
                if (c < 0 || c >= MAX) { close(c); continue; }
                setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                agreed[c] = 0;
                e.events = EPOLLIN, e.data.fd = c;
                epoll_ctl(loop, EPOLL_CTL_ADD, c, &e);
                continue;
            }
            ssize_t got = recv(fd, data, sizeof data, 0);
            if (got <= 0) { close(fd); continue; }
            if (agreed[fd]) { send(fd, data, got, MSG_NOSIGNAL); continue; }
            agreed[fd] = 1;
            send(fd, YES, sizeof YES - 1, MSG_NOSIGNAL);
        }
    }
}
