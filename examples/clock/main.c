/* Clock: the time as JSON over HTTP/1.1. One thread, one poll() loop, keep-alive. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CLIENTS = 64, HEAD = 8192, REQUEST_MS = 5000, IDLE_MS = 75000, LINGER_MS = 1000 };

struct client {
    int fd, served, closing;    /* closing: answered, only draining what still comes in */
    size_t used;
    long long deadline;
    char head[HEAD + 1];
};

static struct client clients[CLIENTS];
static unsigned long requests;

static void stop(int signal) { (void)signal; _exit(0); }    /* every answer is one send(): nothing to finish */

static long long now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static void drop(struct client *c) { close(c->fd); c->fd = -1; }

static void reply(struct client *c, const char *status, const char *kind, const char *body, int no_body, int keep) {
    char out[512];
    int size = snprintf(out, sizeof out,
        "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nCache-Control: no-store\r\n%s\r\n%s",
        status, kind, strlen(body), keep ? "" : "Connection: close\r\n", no_body ? "" : body);
    c->served = 1;
    c->deadline = now_ms() + (keep ? IDLE_MS : LINGER_MS);
    if (send(c->fd, out, size, MSG_NOSIGNAL) != size) drop(c);    /* it does not read: not our problem */
    else if (!keep) c->closing = 1, shutdown(c->fd, SHUT_WR);
}

/* Answers one request: head is the request line and headers, NUL-terminated. */
static void answer(struct client *c, char *head) {
    char method[16], target[1024], minor, body[160], time_text[32];
    if (sscanf(head, "%15[A-Z] %1023[^ \r\n] HTTP/1.%c", method, target, &minor) != 3) {
        reply(c, "400 Bad Request", "text/plain", "bad request\n", 0, 0);
        return;
    }
    char *connection = strcasestr(head, "\nconnection:");
    char *value_end = connection ? strchrnul(connection + 1, '\n') : NULL;
    char *close_word = connection ? strcasestr(connection, "close") : NULL;
    int has_body = strcasestr(head, "\ncontent-length") || strcasestr(head, "\ntransfer-encoding");
    int keep = minor == '1' && !has_body && !(close_word && close_word < value_end);
    int no_body = !strcmp(method, "HEAD");

    target[strcspn(target, "?")] = 0;
    if (strcmp(method, "GET") && !no_body) {
        reply(c, "405 Method Not Allowed\r\nAllow: GET, HEAD", "text/plain", "method not allowed\n", 0, keep);
    } else if (!strcmp(target, "/healthz")) {
        reply(c, "200 OK", "text/plain", "ok", no_body, keep);
    } else if (!strcmp(target, "/")) {
        struct timespec t;
        struct tm utc;
        clock_gettime(CLOCK_REALTIME, &t);
        strftime(time_text, sizeof time_text, "%Y-%m-%dT%H:%M:%S", gmtime_r(&t.tv_sec, &utc));
        snprintf(body, sizeof body, "{\"time\":\"%s.%03ldZ\",\"pid\":%d,\"requests\":%lu}\n",
                 time_text, t.tv_nsec / 1000000, (int)getpid(), ++requests);
        reply(c, "200 OK", "application/json", body, no_body, keep);
    } else {
        reply(c, "404 Not Found", "text/plain", "not found\n", no_body, keep);
    }
}

static void readable(struct client *c) {
    if (c->closing) c->used = 0;
    ssize_t got = recv(c->fd, c->head + c->used, HEAD - c->used, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) { drop(c); return; }
    if (c->closing) return;
    if (c->used == 0) c->deadline = now_ms() + REQUEST_MS;    /* from its first byte, however slowly it drips */
    c->used += got;
    char *end;
    while (c->fd >= 0 && !c->closing && (end = memmem(c->head, c->used, "\r\n\r\n", 4))) {
        size_t size = end + 4 - c->head;
        *end = 0;
        if (strlen(c->head) != size - 4) c->head[0] = 0;    /* a NUL inside: becomes a bad request */
        answer(c, c->head);
        memmove(c->head, c->head + size, c->used -= size);
        if (c->used && !c->closing) c->deadline = now_ms() + REQUEST_MS;
    }
    if (c->fd >= 0 && !c->closing && c->used == HEAD)
        reply(c, "431 Request Header Fields Too Large", "text/plain", "too large\n", 0, 0);
}

/* A free slot, else that of the oldest client, preferably one idle between two requests. */
static struct client *slot(void) {
    struct client *best = NULL;
    int best_idle = 0;
    for (struct client *c = clients; c < clients + CLIENTS; c++) {
        int idle = c->served && !c->closing && !c->used;
        if (c->fd < 0) return c;
        if (!best || idle > best_idle || (idle == best_idle && c->deadline < best->deadline))
            best = c, best_idle = idle;
    }
    return best;
}

int main(void) {
    const char *port = getenv("PORT");
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port ? atoi(port) : 8000),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    int one = 1, server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 128)) {
        perror("clock: listen");
        return 1;
    }
    for (int i = 0; i < CLIENTS; i++) clients[i].fd = -1;
    for (;;) {
        struct pollfd polls[CLIENTS + 1];
        long long now = now_ms(), next = now + 60000;
        for (int i = 0; i < CLIENTS; i++) {
            if (clients[i].fd >= 0 && clients[i].deadline <= now) drop(&clients[i]);
            if (clients[i].fd >= 0 && clients[i].deadline < next) next = clients[i].deadline;
            polls[i] = (struct pollfd){ .fd = clients[i].fd, .events = POLLIN };
        }
        polls[CLIENTS] = (struct pollfd){ .fd = server, .events = POLLIN };
        if (poll(polls, CLIENTS + 1, (int)(next - now)) < 0) continue;
        for (int i = 0; i < CLIENTS; i++)
            if (polls[i].revents) readable(&clients[i]);
        int fd = polls[CLIENTS].revents ? accept4(server, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC) : -1;
        if (fd < 0) continue;
        struct client *c = slot();
        if (c->fd >= 0) drop(c);
        c->fd = fd, c->served = c->closing = 0, c->used = 0, c->deadline = now_ms() + REQUEST_MS;
    }
}
