/* One load step against one HTTP/1.1 server on loopback: every answer is checked, everything is bounded.
 *
 *   generator PORT CONNECTIONS SECONDS RATE TLS FILE
 *
 * RATE 0 is a closed loop: each connection asks again when it was answered; SECONDS 0 asks once on each. RATE > 0 is
 * an open loop: arrivals of a Poisson process, spread over the connections; an arrival's latency counts from when it
 * was due, so a server that falls behind cannot hide it. When the time is over nothing new is asked, and the step ends
 * with the last answer: who reads the server's CPU clock before and after has the cost of exactly these answers.
 *
 * Prints "ready", waits for a line, then prints one line of JSON. FILE is written by wire.py:
 *   u32 requests, u32 numbers per answer, f32 absolute, f32 relative, u32 size of the mark, the mark,
 *   then for each request: u32 size, bytes, f32 numbers.
 * The numbers stand in an answer's body behind the mark, as JSON; without a mark they are its last bytes, as float32. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/ssl.h>
static SSL_CTX *tls_context;
#else
typedef void SSL;
#endif

enum { MOST_CONNECTIONS = 4096, MOST_REQUESTS = 4096, MOST_ANSWER = 16 << 20, MOST_FAULTS = 100, DRAIN_SECONDS = 60 };
static const uint64_t SECOND = 1000000000ull;

typedef struct { char *bytes; uint32_t size; float *want; } Request;
typedef struct {
  int fd; SSL *tls;
  bool busy; const Request *request; size_t sent; uint64_t due;
  char *answer; size_t held, room, body, whole; int status;
} Connection;

static Request *requests; static uint32_t request_count, number_count; static uint64_t asked;
static float absolute, relative; static char *mark; static uint32_t mark_size;
static struct sockaddr_in address; static int epoll;
static Connection *connections, **idle; static int connection_count, idle_count, busy_count;
static uint64_t begun, stop, last_answer; static double rate;
static uint64_t *due; static size_t due_first, due_end, due_room; /* arrivals that wait for a connection */
static float *latency; static size_t latency_count, latency_room; /* milliseconds */
static uint64_t right, wrong, refused, broken; static int last_refusal;

static uint64_t now(void) {
  struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}
static void fail(const char *what) { fprintf(stderr, "generator: %s: %s\n", what, strerror(errno)); exit(2); }
static void *grown(void *old, size_t size) { void *made = realloc(old, size); if (!made) fail("memory"); return made; }

/* --- the requests */
static void take(FILE *file, void *into, size_t size) { if (size && fread(into, size, 1, file) != 1) fail("the requests' file"); }
static uint32_t take_count(FILE *file, uint32_t most) {
  uint32_t count; take(file, &count, sizeof count);
  if (count > most) { errno = E2BIG; fail("the requests' file"); }
  return count;
}
static void load(const char *path) {
  FILE *file = fopen(path, "rb"); if (!file) fail(path);
  request_count = take_count(file, MOST_REQUESTS); number_count = take_count(file, 65536);
  take(file, &absolute, sizeof absolute); take(file, &relative, sizeof relative);
  mark_size = take_count(file, 64); mark = grown(NULL, mark_size + 1); take(file, mark, mark_size);
  requests = grown(NULL, request_count * sizeof *requests);
  for (uint32_t i = 0; i < request_count; i++) {
    Request *r = &requests[i];
    r->size = take_count(file, 64 << 20); r->bytes = grown(NULL, r->size); take(file, r->bytes, r->size);
    r->want = grown(NULL, number_count * sizeof(float)); take(file, r->want, number_count * sizeof(float));
  }
  fclose(file);
}

/* --- connections */
static void dial(Connection *c) {
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
  struct timeval patience = {.tv_sec = 30}; /* for the handshake; later nothing blocks */
  setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  int on = 1; setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
#ifdef WITH_TLS
  if (tls_context) {
    c->tls = SSL_new(tls_context); SSL_set_fd(c->tls, c->fd);
    if (SSL_connect(c->tls) != 1) { errno = EPROTO; fail("TLS"); }
  }
#endif
  fcntl(c->fd, F_SETFL, O_NONBLOCK);
  struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event)) fail("epoll");
}
static void hang_up(Connection *c) {
#ifdef WITH_TLS
  if (c->tls) { SSL_free(c->tls); c->tls = NULL; }
#endif
  close(c->fd);
}
/* Bytes moved; 0: the peer is gone; -1: not now. */
static ssize_t moved(Connection *c, void *into, const void *from, size_t size) {
#ifdef WITH_TLS
  if (c->tls) {
    int count = into ? SSL_read(c->tls, into, (int)size) : SSL_write(c->tls, from, (int)size);
    if (count > 0) return count;
    int why = SSL_get_error(c->tls, count);
    return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? -1 : 0;
  }
#endif
  ssize_t count = into ? recv(c->fd, into, size, 0) : send(c->fd, from, size, MSG_NOSIGNAL);
  if (count >= 0) return count;
  return errno == EAGAIN || errno == EINTR ? -1 : 0;
}

static void push(Connection *c) {
  while (c->busy && c->sent < c->request->size) {
    ssize_t count = moved(c, NULL, c->request->bytes + c->sent, c->request->size - c->sent);
    if (count <= 0) return; /* a peer that is gone is seen when reading */
    c->sent += (size_t)count;
  }
}
static void ask(Connection *c, uint64_t when) {
  c->request = &requests[asked++ % request_count]; c->due = when;
  c->sent = c->held = c->body = c->whole = 0; c->busy = true; busy_count++;
  push(c);
}
static void ask_next(Connection *c) {
  uint64_t t = now();
  if (rate > 0 && due_first < due_end && t < stop) ask(c, due[due_first++]);
  else if (rate == 0 && t < stop) ask(c, t);
  else idle[idle_count++] = c;
}

/* --- answers */
static void note_latency(uint64_t since, uint64_t until) {
  if (latency_count == latency_room) latency = grown(latency, (latency_room = latency_room * 2 + 4096) * sizeof *latency);
  latency[latency_count++] = (float)((double)(until - since) / 1e6);
}
static bool same(float got, float want) { return fabsf(got - want) <= absolute + relative * fabsf(want); }
static bool check(Connection *c) {
  const float *want = c->request->want;
  char *at = c->answer + c->body, *end = c->answer + c->whole;
  if (!mark_size) {
    if ((size_t)(end - at) < number_count * sizeof(float)) return false;
    at = end - number_count * sizeof(float);
    for (uint32_t i = 0; i < number_count; i++, at += sizeof(float)) {
      float got; memcpy(&got, at, sizeof got);
      if (!same(got, want[i])) return false;
    }
    return true;
  }
  if (!(at = memmem(at, (size_t)(end - at), mark, mark_size))) return false;
  at += mark_size;
  for (uint32_t i = 0; i < number_count; i++) { /* the buffer ends with a zero, so strtof stops there */
    at += strspn(at, i ? " \t\r\n," : " \t\r\n:[");
    char *rest; float got = strtof(at, &rest);
    if (rest == at || rest > end || !same(got, want[i])) return false;
    at = rest;
  }
  at += strspn(at, " \t\r\n");
  return *at == ']'; /* as many numbers as there should be */
}
/* True when the whole answer is there. */
static bool complete(Connection *c) {
  c->answer[c->held] = 0;
  if (!c->body) {
    char *end = memmem(c->answer, c->held, "\r\n\r\n", 4);
    if (!end) return false;
    c->body = (size_t)(end - c->answer) + 4;
    c->status = c->held > 12 ? atoi(c->answer + 9) : 0;
    for (char *line = c->answer; line < end; line = strstr(line, "\r\n") + 2)
      if (!strncasecmp(line, "content-length:", 15)) c->whole = c->body + strtoul(line + 15, NULL, 10);
    if (!c->whole || c->whole > MOST_ANSWER) { errno = EPROTO; fail("an answer without a length, or too long"); }
  }
  return c->held >= c->whole;
}
static void judge(Connection *c) {
  last_answer = now();
  const char *word = NULL;
  if (c->status != 200) { refused++; last_refusal = c->status; if (refused == 1) word = "refused"; }
  else if (!check(c)) { if (++wrong == 1) word = "wrong"; }
  else right++;
  if (word) fprintf(stderr, "%s: HTTP %d %.400s\n", word, c->status, mark_size || c->status != 200 ? c->answer + c->body : "(binary)");
  note_latency(c->due, last_answer);
  c->busy = false; busy_count--;
}
static void lost(Connection *c) {
  bool was_busy = c->busy;
  hang_up(c);
  if (was_busy && ++broken > MOST_FAULTS) { errno = ECONNRESET; fail("too many connections broke"); }
  if (was_busy) { c->busy = false; busy_count--; }
  dial(c);
  if (was_busy) ask_next(c);
}
static void pull(Connection *c) {
  for (;;) {
    if (c->room - c->held < 65536) c->answer = grown(c->answer, (c->room = c->room * 2 + 131072) + 1);
    ssize_t count = moved(c, c->answer + c->held, NULL, c->room - c->held);
    if (count < 0) return;
    if (count == 0) { lost(c); return; }
    c->held += (size_t)count;
    if (!c->busy) { errno = EPROTO; fail("an answer that nobody asked for"); }
    if (complete(c)) { judge(c); ask_next(c); }
  }
}

/* --- the step */
static void arrive(uint64_t t, uint64_t *next) {
  static unsigned seed = 42;
  for (; *next <= t && *next < stop; *next += (uint64_t)(-log((rand_r(&seed) + 1.0) / (RAND_MAX + 2.0)) / rate * 1e9) + 1) {
    if (due_end == due_room) due = grown(due, (due_room = due_room * 2 + 4096) * sizeof *due);
    due[due_end++] = *next;
  }
  while (idle_count && due_first < due_end) ask(idle[--idle_count], due[due_first++]);
}
static void run(double seconds) {
  struct epoll_event events[256];
  uint64_t next = begun = now();
  stop = begun + (uint64_t)(seconds * 1e9); last_answer = begun;
  idle_count = 0;
  for (int i = 0; i < connection_count; i++)
    if (rate > 0) idle[idle_count++] = &connections[i];
    else ask(&connections[i], now());
  for (;;) {
    uint64_t t = now(), wait = SECOND / 20;
    if (rate > 0 && t < stop) { arrive(t, &next); t = now(); if (next < t + wait) wait = next > t ? next - t : 0; }
    if (t >= stop && !busy_count) return;
    if (t > stop + DRAIN_SECONDS * SECOND) { errno = ETIMEDOUT; fail("answers"); }
    struct timespec pause = {.tv_nsec = (long)wait};
    int count = epoll_pwait2(epoll, events, 256, &pause, NULL);
    for (int i = 0; i < count; i++) { push(events[i].data.ptr); pull(events[i].data.ptr); }
  }
}
static int ascending(const void *a, const void *b) { float x = *(const float *)a, y = *(const float *)b; return (x > y) - (x < y); }
static double quantile(double share) { return latency_count ? latency[(size_t)((double)(latency_count - 1) * share)] : -1; }

int main(int count, char **words) {
  if (count != 7) { fprintf(stderr, "usage: generator PORT CONNECTIONS SECONDS RATE TLS FILE\n"); return 2; }
  connection_count = atoi(words[2]); rate = atof(words[4]);
  if (connection_count < 1 || connection_count > MOST_CONNECTIONS) { errno = EINVAL; fail("connections"); }
  signal(SIGPIPE, SIG_IGN);
  load(words[6]);
  address.sin_family = AF_INET; address.sin_port = htons((uint16_t)atoi(words[1])); address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (atoi(words[5])) {
#ifdef WITH_TLS
    tls_context = SSL_CTX_new(TLS_client_method()); /* the certificate is made for this run; what is measured is the cost */
    SSL_CTX_set_mode(tls_context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
#else
    errno = ENOSYS; fail("built without TLS");
#endif
  }
  epoll = epoll_create1(0);
  connections = calloc((size_t)connection_count, sizeof *connections); idle = calloc((size_t)connection_count, sizeof *idle);
  for (int i = 0; i < connection_count; i++) dial(&connections[i]);
  puts("ready"); fflush(stdout);
  if (getchar() == EOF) return 2;
  struct rusage before, after; getrusage(RUSAGE_SELF, &before);
  run(atof(words[3]));
  getrusage(RUSAGE_SELF, &after);
  uint64_t ended = now();
  for (size_t i = due_first; i < due_end; i++) note_latency(due[i], ended); /* never asked: at least this late */
  double seconds = (double)(last_answer - begun) / 1e9;
  double cpu = (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec + after.ru_stime.tv_sec - before.ru_stime.tv_sec)
             + (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_stime.tv_usec) / 1e6;
  qsort(latency, latency_count, sizeof *latency, ascending);
  printf("{\"right\": %lu, \"wrong\": %lu, \"refused\": %lu, \"status\": %d, \"broken\": %lu, \"unasked\": %zu, \"seconds\": %.6f,"
         " \"generator\": %.4f, \"p50_ms\": %.4f, \"p99_ms\": %.4f, \"max_ms\": %.4f}\n",
         right, wrong, refused, last_refusal, broken, due_end - due_first, seconds, seconds > 0 ? cpu / seconds : 0,
         quantile(.5), quantile(.99), quantile(1));
  return 0;
}
