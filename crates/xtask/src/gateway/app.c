/* The app behind every proxy of the benchmark: one thread, epoll, keep-alive; /1k and /1m give so many bytes. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX = 4096, HEAD = 4096, LARGE = 1 << 20 };
static struct { size_t used, left; char head[HEAD]; } clients[MAX];
static char body[LARGE];
static int loop;

static void want(int fd, unsigned events) {
    struct epoll_event e = { .events = events, .data.fd = fd };
    epoll_ctl(loop, EPOLL_CTL_MOD, fd, &e);
}

static int push(int fd) {    /* what is left of the body; 0 if the peer is gone */
    while (clients[fd].left) {
        ssize_t n = send(fd, body, clients[fd].left, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0) { want(fd, EPOLLOUT); return 1; }
        clients[fd].left -= n;
    }
    want(fd, EPOLLIN);
    return 1;
}

static int answer(int fd) {
    char out[HEAD];
    size_t length = strstr(clients[fd].head, "/1m") ? LARGE : 1024;
    int size = snprintf(out, sizeof out, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n\r\n", length);
    if (length == 1024) {
        memcpy(out + size, body, 1024);
        return send(fd, out, size + 1024, MSG_NOSIGNAL) == size + 1024;
    }
    if (send(fd, out, size, MSG_NOSIGNAL | MSG_MORE) != size) return 0;
    clients[fd].left = length;
    return push(fd);
}

int main(void) {
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(atoi(getenv("PORT"))), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    memset(body, 'x', sizeof body);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&a, sizeof a) || listen(listener, 1024)) return perror("listen"), 1;
    loop = epoll_create1(0);
    struct epoll_event e = { .events = EPOLLIN, .data.fd = listener }, ready[64];
    epoll_ctl(loop, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int n = epoll_wait(loop, ready, 64, -1);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) {
                int c = accept(listener, NULL, NULL);
                if (c < 0 || c >= MAX) { close(c); continue; }
                setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                clients[c].used = clients[c].left = 0;
                e.events = EPOLLIN, e.data.fd = c;
                epoll_ctl(loop, EPOLL_CTL_ADD, c, &e);
                continue;
            }
            if (clients[fd].left) { if (!push(fd)) close(fd); continue; }
            ssize_t got = recv(fd, clients[fd].head + clients[fd].used, HEAD - 1 - clients[fd].used, 0);
            if (got <= 0) { close(fd); continue; }
            clients[fd].used += got;
            clients[fd].head[clients[fd].used] = 0;
            if (strstr(clients[fd].head, "\r\n\r\n")) {
                clients[fd].used = 0;
                if (!answer(fd)) close(fd);
            }
        }
    }
}
