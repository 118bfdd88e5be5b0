/* Sockets over loopback, as Winsock programs use them; prints what happened, and native Windows prints the same.
   Usage: network [WORD]...: tcp udp select poll nonblocking overlapped events acceptex names ipv6 apc
   native outside NAME lookup NAME PORT; without words: all that need nothing but loopback and ws2_32. */
#define _WIN32_WINNT 0x0600
#include <winsock2.h>
#include <ws2tcpip.h>
#include <mswsock.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct sockaddr_in loopback(int port)
{
    struct sockaddr_in address;
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void expect(int holds, const char *what)
{
    if (!holds) {
        printf("%s: error %d\n", what, WSAGetLastError());
        fflush(stdout);
        exit(1);
    }
}

static int port_of(SOCKET socket)
{
    struct sockaddr_storage address;
    int length = sizeof address;
    expect(!getsockname(socket, (struct sockaddr *)&address, &length), "getsockname");
    return ntohs(((struct sockaddr_in *)&address)->sin_port);
}

static SOCKET listener(int family, int *port)
{
    SOCKET made = socket(family, SOCK_STREAM, 0);
    struct sockaddr_in v4 = loopback(0);
    struct sockaddr_in6 v6;
    expect(made != INVALID_SOCKET, "socket");
    memset(&v6, 0, sizeof v6);
    v6.sin6_family = AF_INET6;
    v6.sin6_addr.s6_addr[15] = 1;
    expect(!bind(made, family == AF_INET ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6,
                 family == AF_INET ? sizeof v4 : sizeof v6), "bind");
    expect(!listen(made, 5), "listen");
    *port = port_of(made);
    return made;
}

static SOCKET connected(int port)
{
    SOCKET made = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = loopback(port);
    expect(!connect(made, (struct sockaddr *)&address, sizeof address), "connect");
    return made;
}

/* A pair of connected sockets. */
static void pair(SOCKET *client, SOCKET *server)
{
    int port;
    SOCKET listening = listener(AF_INET, &port);
    *client = connected(port);
    *server = accept(listening, NULL, NULL);
    expect(*server != INVALID_SOCKET, "accept");
    closesocket(listening);
}

static DWORD WINAPI echo(void *argument)
{
    SOCKET listening = (SOCKET)argument, peer;
    static char buffer[65536];
    int length;
    peer = accept(listening, NULL, NULL);
    expect(peer != INVALID_SOCKET, "accept");
    while ((length = recv(peer, buffer, sizeof buffer, 0)) > 0) {
        int sent = 0;
        while (sent < length) {
            int part = send(peer, buffer + sent, length - sent, 0);
            expect(part > 0, "send of the echo");
            sent += part;
        }
    }
    expect(length == 0, "recv of the echo");
    closesocket(peer);
    return 0;
}

static DWORD WINAPI sender(void *argument)
{
    SOCKET client = (SOCKET)argument;
    static char data[65536];
    int block, i;
    for (block = 0; block < 64; block++) {
        int sent = 0;
        for (i = 0; i < (int)sizeof data; i++)
            data[i] = (char)(i * 7 + block);
        while (sent < (int)sizeof data) {
            int part = send(client, data + sent, sizeof data - sent, 0);
            expect(part > 0, "send");
            sent += part;
        }
    }
    expect(!shutdown(client, SD_SEND), "shutdown");
    return 0;
}

static void tcp(int family, const char *name)
{
    int port, length, right = 1;
    SOCKET listening = listener(family, &port), client;
    HANDLE threads[2];
    static char buffer[65536];
    unsigned total = 0;
    if (family == AF_INET) {
        client = connected(port);
    } else {
        struct sockaddr_in6 v6;
        memset(&v6, 0, sizeof v6);
        v6.sin6_family = AF_INET6;
        v6.sin6_port = htons(port);
        v6.sin6_addr.s6_addr[15] = 1;
        client = socket(AF_INET6, SOCK_STREAM, 0);
        expect(!connect(client, (struct sockaddr *)&v6, sizeof v6), "connect");
    }
    threads[0] = CreateThread(NULL, 0, echo, (void *)listening, 0, NULL);
    threads[1] = CreateThread(NULL, 0, sender, (void *)client, 0, NULL);
    while ((length = recv(client, buffer, sizeof buffer, 0)) > 0) {
        int i;
        for (i = 0; i < length; i++, total++)
            right &= buffer[i] == (char)((total % 65536) * 7 + total / 65536);
    }
    expect(length == 0, "recv");
    WaitForMultipleObjects(2, threads, TRUE, INFINITE);
    closesocket(client);
    closesocket(listening);
    printf("%s: %u bytes came back %s\n", name, total, right ? "right" : "wrong");
}

static DWORD WINAPI answer(void *argument)
{
    SOCKET server = (SOCKET)argument;
    char buffer[2048];
    struct sockaddr_in from;
    int i;
    for (i = 0; i < 100; i++) {
        int size = sizeof from;
        int length = recvfrom(server, buffer, sizeof buffer, 0, (struct sockaddr *)&from, &size);
        expect(length > 0 && size == sizeof from, "recvfrom");
        buffer[0]++;
        expect(sendto(server, buffer, length, 0, (struct sockaddr *)&from, size) == length, "sendto");
    }
    return 0;
}

static void udp(void)
{
    SOCKET server = socket(AF_INET, SOCK_DGRAM, 0), client = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in address = loopback(0);
    HANDLE thread;
    char buffer[2048];
    int i, right = 0, length;
    expect(!bind(server, (struct sockaddr *)&address, sizeof address), "bind");
    address = loopback(port_of(server));
    thread = CreateThread(NULL, 0, answer, (void *)server, 0, NULL);
    for (i = 0; i < 100; i++) {
        memset(buffer, i, sizeof buffer);
        expect(sendto(client, buffer, 1 + i * 10, 0, (struct sockaddr *)&address, sizeof address) == 1 + i * 10, "sendto");
        length = recv(client, buffer, sizeof buffer, 0);
        right += length == 1 + i * 10 && buffer[0] == i + 1;
    }
    WaitForSingleObject(thread, INFINITE);
    printf("udp: %d of 100 answers right\n", right);
    expect(sendto(client, "0123456789", 10, 0, (struct sockaddr *)&address, sizeof address) == 10, "sendto");
    length = recv(server, buffer, 4, 0);
    printf("udp: a datagram of 10 bytes into 4: %d, error %d, %.4s\n", length, WSAGetLastError(), buffer);
    closesocket(server);
    closesocket(client);
}

static DWORD WINAPI late_byte(void *argument)
{
    Sleep(50);
    send((SOCKET)argument, "x", 1, 0);
    return 0;
}

static void test_select(void)
{
    SOCKET client, server;
    fd_set reading, writing;
    struct timeval time = { 0, 20000 };
    char byte;
    int ready;
    HANDLE thread;
    pair(&client, &server);
    FD_ZERO(&reading);
    FD_SET(server, &reading);
    ready = select(0, &reading, NULL, NULL, &time);
    printf("select: %d ready without data\n", ready);
    FD_ZERO(&reading);
    FD_ZERO(&writing);
    FD_SET(server, &reading);
    FD_SET(server, &writing);
    ready = select(0, &reading, &writing, NULL, NULL);
    printf("select: %d ready, readable %d, writable %d\n", ready, FD_ISSET(server, &reading) != 0,
           FD_ISSET(server, &writing) != 0);
    thread = CreateThread(NULL, 0, late_byte, (void *)client, 0, NULL);
    FD_ZERO(&reading);
    FD_SET(server, &reading);
    ready = select(0, &reading, NULL, NULL, NULL);
    printf("select: %d ready after the other thread has sent, recv gives %d\n", ready, recv(server, &byte, 1, 0));
    WaitForSingleObject(thread, INFINITE);
    closesocket(client);
    FD_ZERO(&reading);
    FD_SET(server, &reading);
    ready = select(0, &reading, NULL, NULL, NULL);
    printf("select: %d ready after the peer has closed, recv gives %d\n", ready, recv(server, &byte, 1, 0));
    closesocket(server);
}

static void test_poll(void)
{
    SOCKET client, server;
    WSAPOLLFD polled[2];
    HANDLE thread;
    int ready;
    pair(&client, &server);
    polled[0].fd = server;
    polled[0].events = POLLRDNORM;
    polled[1].fd = client;
    polled[1].events = POLLRDNORM;
    ready = WSAPoll(polled, 2, 10);
    printf("poll: %d ready without data\n", ready);
    thread = CreateThread(NULL, 0, late_byte, (void *)client, 0, NULL);
    ready = WSAPoll(polled, 2, -1);
    printf("poll: %d ready, events %x and %x\n", ready, polled[0].revents, polled[1].revents);
    WaitForSingleObject(thread, INFINITE);
    closesocket(client);
    closesocket(server);
}

static void nonblocking(void)
{
    int port, result, error = 0, size = sizeof error;
    u_long on = 1;
    SOCKET listening = listener(AF_INET, &port), client = socket(AF_INET, SOCK_STREAM, 0), server;
    struct sockaddr_in address = loopback(port);
    fd_set writing, failed;
    char byte;
    ioctlsocket(client, FIONBIO, &on);
    ioctlsocket(listening, FIONBIO, &on);
    result = (int)accept(listening, NULL, NULL);
    printf("nonblocking: accept gives %d, error %d\n", result, WSAGetLastError());
    result = connect(client, (struct sockaddr *)&address, sizeof address);
    expect(result == 0 || WSAGetLastError() == WSAEWOULDBLOCK, "connect");
    FD_ZERO(&writing);
    FD_SET(client, &writing);
    result = select(0, NULL, &writing, NULL, NULL);
    getsockopt(client, SOL_SOCKET, SO_ERROR, (char *)&error, &size);
    printf("nonblocking: %d connected, SO_ERROR %d\n", result, error);
    result = recv(client, &byte, 1, 0);
    printf("nonblocking: recv gives %d, error %d\n", result, WSAGetLastError());
    server = accept(listening, NULL, NULL);
    expect(server != INVALID_SOCKET, "accept");
    closesocket(listening);
    closesocket(server);
    closesocket(client);
    /* Nobody listens there any more. */
    client = socket(AF_INET, SOCK_STREAM, 0);
    ioctlsocket(client, FIONBIO, &on);
    result = connect(client, (struct sockaddr *)&address, sizeof address);
    expect(result == 0 || WSAGetLastError() == WSAEWOULDBLOCK || WSAGetLastError() == WSAECONNREFUSED, "connect");
    FD_ZERO(&writing);
    FD_ZERO(&failed);
    FD_SET(client, &writing);
    FD_SET(client, &failed);
    result = select(0, NULL, &writing, &failed, NULL);
    getsockopt(client, SOL_SOCKET, SO_ERROR, (char *)&error, &size);
    printf("nonblocking: %d failed (%d), SO_ERROR %d\n", result, FD_ISSET(client, &failed) != 0, error);
    closesocket(client);
    client = socket(AF_INET, SOCK_STREAM, 0);
    result = connect(client, (struct sockaddr *)&address, sizeof address);
    printf("blocking: connect to nobody gives %d, error %d\n", result, WSAGetLastError());
    closesocket(client);
}

static void overlapped(void)
{
    SOCKET client, server;
    HANDLE port = CreateIoCompletionPort(INVALID_HANDLE_VALUE, NULL, 0, 1), thread;
    OVERLAPPED reading, writing, *done;
    WSABUF parts[2];
    char first[4] = "", second[16] = "";
    DWORD flags = 0, length;
    ULONG_PTR key;
    int result;
    pair(&client, &server);
    CreateIoCompletionPort((HANDLE)server, port, 42, 0);
    memset(&reading, 0, sizeof reading);
    memset(&writing, 0, sizeof writing);
    parts[0].buf = first;
    parts[0].len = 3;
    parts[1].buf = second;
    parts[1].len = sizeof second;
    result = WSARecv(server, parts, 2, NULL, &flags, &reading, NULL);
    printf("overlapped: receiving gives %d, error %d\n", result, result ? WSAGetLastError() : 0);
    result = GetQueuedCompletionStatus(port, &length, &key, &done, 10);
    printf("overlapped: nothing after 10 ms: %d, error %lu\n", result, GetLastError());
    send(client, "abcdefg", 7, 0);
    result = GetQueuedCompletionStatus(port, &length, &key, &done, INFINITE);
    printf("overlapped: %d, %lu bytes, key %d, %s: %.3s %.4s\n", result, length, (int)key,
           done == &reading ? "the receiving" : "another", first, second);
    parts[0].buf = "0123456789";
    parts[0].len = 10;
    result = WSASend(server, parts, 1, &length, 0, &writing, NULL);
    expect(result == 0 || WSAGetLastError() == WSA_IO_PENDING, "WSASend");
    result = GetQueuedCompletionStatus(port, &length, &key, &done, INFINITE);
    printf("overlapped: %d, %lu bytes sent, %s\n", result, length, done == &writing ? "the sending" : "another");
    /* Closing ends what waits. */
    memset(&reading, 0, sizeof reading);
    parts[0].buf = second;
    flags = 0;
    expect(WSARecv(server, parts, 1, NULL, &flags, &reading, NULL) == -1 && WSAGetLastError() == WSA_IO_PENDING, "WSARecv");
    CancelIoEx((HANDLE)server, &reading);
    result = GetQueuedCompletionStatus(port, &length, &key, &done, INFINITE);
    printf("overlapped: cancelled: %d, error %lu\n", result, GetLastError());
    closesocket(client);
    closesocket(server);
    /* An event instead of a port. */
    pair(&client, &server);
    memset(&reading, 0, sizeof reading);
    reading.hEvent = CreateEventA(NULL, TRUE, FALSE, NULL);
    parts[0].len = sizeof second;
    flags = 0;
    expect(WSARecv(server, parts, 1, NULL, &flags, &reading, NULL) == -1 && WSAGetLastError() == WSA_IO_PENDING, "WSARecv");
    thread = CreateThread(NULL, 0, late_byte, (void *)client, 0, NULL);
    result = WaitForSingleObject(reading.hEvent, INFINITE);
    expect(WSAGetOverlappedResult(server, &reading, &length, FALSE, &flags), "WSAGetOverlappedResult");
    printf("overlapped: event %d, %lu byte\n", result, length);
    WaitForSingleObject(thread, INFINITE);
    closesocket(client);
    closesocket(server);
}

static DWORD called_with;
static void CALLBACK routine(DWORD error, DWORD length, OVERLAPPED *done, DWORD flags)
{
    called_with = length;
}

static void apcs(void)
{
    SOCKET client, server;
    OVERLAPPED reading;
    WSABUF part;
    char data[16];
    DWORD flags = 0;
    HANDLE thread;
    pair(&client, &server);
    memset(&reading, 0, sizeof reading);
    part.buf = data;
    part.len = sizeof data;
    expect(WSARecv(server, &part, 1, NULL, &flags, &reading, routine) == -1 && WSAGetLastError() == WSA_IO_PENDING, "WSARecv");
    thread = CreateThread(NULL, 0, late_byte, (void *)client, 0, NULL);
    flags = SleepEx(INFINITE, TRUE);
    printf("apc: the wait gives %lx, the routine got %lu byte\n", flags, called_with);
    WaitForSingleObject(thread, INFINITE);
    closesocket(client);
    closesocket(server);
}

static void events(void)
{
    SOCKET client, server;
    WSANETWORKEVENTS found;
    WSAEVENT event = WSACreateEvent();
    char byte;
    HANDLE thread;
    pair(&client, &server);
    WSAEventSelect(server, event, FD_READ | FD_WRITE | FD_CLOSE);
    printf("events: wait %lu,", WSAWaitForMultipleEvents(1, &event, FALSE, 1000, FALSE));
    WSAEnumNetworkEvents(server, event, &found);
    printf(" found %lx\n", found.lNetworkEvents);
    thread = CreateThread(NULL, 0, late_byte, (void *)client, 0, NULL);
    printf("events: wait %lu,", WSAWaitForMultipleEvents(1, &event, FALSE, WSA_INFINITE, FALSE));
    WSAEnumNetworkEvents(server, event, &found);
    printf(" found %lx, recv gives %d\n", found.lNetworkEvents, recv(server, &byte, 1, 0));
    printf("events: wait without anything new %lu\n", WSAWaitForMultipleEvents(1, &event, FALSE, 20, FALSE));
    WaitForSingleObject(thread, INFINITE);
    closesocket(client);
    printf("events: wait %lu,", WSAWaitForMultipleEvents(1, &event, FALSE, WSA_INFINITE, FALSE));
    WSAEnumNetworkEvents(server, event, &found);
    printf(" found %lx, error %d\n", found.lNetworkEvents, found.iErrorCode[FD_CLOSE_BIT]);
    closesocket(server);
    WSACloseEvent(event);
}

static void acceptex(void)
{
    GUID accept_guid = WSAID_ACCEPTEX, connect_guid = WSAID_CONNECTEX;
    LPFN_ACCEPTEX accept_ex;
    LPFN_CONNECTEX connect_ex;
    int port, size;
    DWORD length, lengths[2] = { 0, 0 };
    int results[2] = { 0, 0 };
    SOCKET listening = listener(AF_INET, &port), server = socket(AF_INET, SOCK_STREAM, 0);
    SOCKET client = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in any = loopback(0), address = loopback(port);
    OVERLAPPED accepting, connecting;
    HANDLE completion = CreateIoCompletionPort((HANDLE)listening, NULL, 7, 0);
    char buffer[128];
    ULONG_PTR key;
    OVERLAPPED *done;
    int result, i;
    expect(!WSAIoctl(listening, SIO_GET_EXTENSION_FUNCTION_POINTER, &accept_guid, sizeof accept_guid, &accept_ex,
                     sizeof accept_ex, &length, NULL, NULL), "AcceptEx");
    expect(!WSAIoctl(listening, SIO_GET_EXTENSION_FUNCTION_POINTER, &connect_guid, sizeof connect_guid, &connect_ex,
                     sizeof connect_ex, &length, NULL, NULL), "ConnectEx");
    memset(&accepting, 0, sizeof accepting);
    memset(&connecting, 0, sizeof connecting);
    CreateIoCompletionPort((HANDLE)client, completion, 8, 0);
    result = accept_ex(listening, server, buffer, 32, 32, 32, &length, &accepting);
    printf("acceptex: %d, error %d\n", result, WSAGetLastError());
    expect(!bind(client, (struct sockaddr *)&any, sizeof any), "bind");
    result = connect_ex(client, (struct sockaddr *)&address, sizeof address, "hello", 5, &length, &connecting);
    expect(result || WSAGetLastError() == WSA_IO_PENDING, "ConnectEx");
    /* They come in either order. */
    for (i = 0; i < 2; i++) {
        result = GetQueuedCompletionStatus(completion, &length, &key, &done, INFINITE);
        results[key == 8] = result;
        lengths[key == 8] = length;
    }
    printf("acceptex: accepted %d, %lu bytes: %.5s\n", results[0], lengths[0], buffer);
    printf("acceptex: connected %d, %lu bytes sent\n", results[1], lengths[1]);
    expect(!setsockopt(server, SOL_SOCKET, SO_UPDATE_ACCEPT_CONTEXT, (char *)&listening, sizeof listening), "update");
    size = sizeof address;
    result = getpeername(server, (struct sockaddr *)&address, &size);
    printf("acceptex: getpeername %d, %s\n", result, inet_ntoa(address.sin_addr));
    closesocket(client);
    closesocket(server);
    closesocket(listening);
}

static void names(void)
{
    struct addrinfo hints, *found, *each;
    char host[256], service[32];
    struct sockaddr_in address = loopback(80);
    struct hostent *old;
    int result, v4 = 0, v6 = 0;
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    result = getaddrinfo("localhost", "http", &hints, &found);
    printf("names: localhost %d,", result);
    for (each = result ? NULL : found; each; each = each->ai_next) {
        v4 += each->ai_family == AF_INET && ((struct sockaddr_in *)each->ai_addr)->sin_port == htons(80);
        v6 += each->ai_family == AF_INET6;
    }
    printf(" IPv4 %d\n", v4);
    if (!result)
        freeaddrinfo(found);
    result = getaddrinfo("no-such-name.invalid", NULL, &hints, &found);
    printf("names: no such name: %d\n", result);
    hints.ai_flags = AI_NUMERICHOST;
    result = getaddrinfo("127.0.0.5", "4711", &hints, &found);
    printf("names: numeric %d, %s, port %d\n", result, inet_ntoa(((struct sockaddr_in *)found->ai_addr)->sin_addr),
           ntohs(((struct sockaddr_in *)found->ai_addr)->sin_port));
    result = getnameinfo((struct sockaddr *)&address, sizeof address, host, sizeof host, service, sizeof service,
                         NI_NUMERICHOST | NI_NUMERICSERV);
    printf("names: getnameinfo %d, %s, %s\n", result, host, service);
    result = gethostname(host, sizeof host);
    printf("names: gethostname %d, %s\n", result, host[0] ? "some name" : "none");
    old = gethostbyname("localhost");
    printf("names: gethostbyname %s\n", old ? inet_ntoa(*(struct in_addr *)old->h_addr_list[0]) : "nothing");
}

/* Sockets without ws2_32, by Windows' own control codes: what programs do that go round it. */
typedef struct { LONG status; ULONG_PTR information; } io_block;
typedef struct { USHORT length, maximum; WCHAR *buffer; } counted;
typedef struct { ULONG length; HANDLE root; counted *name; ULONG flags; void *security, *quality; } attributes;
LONG NTAPI NtCreateFile(HANDLE *, ULONG, attributes *, io_block *, LARGE_INTEGER *, ULONG, ULONG, ULONG, ULONG, void *, ULONG);
LONG NTAPI NtDeviceIoControlFile(HANDLE, HANDLE, void *, void *, io_block *, ULONG, void *, ULONG, void *, ULONG);

static LONG device(HANDLE file, ULONG code, void *in, ULONG in_length, void *out, ULONG out_length, ULONG_PTR *information)
{
    static HANDLE event;
    io_block io;
    LONG status;
    if (!event)
        event = CreateEventA(NULL, FALSE, FALSE, NULL);
    status = NtDeviceIoControlFile(file, event, NULL, NULL, &io, code, in, in_length, out, out_length);
    if (status == 0x103) {
        WaitForSingleObject(event, INFINITE);
        status = io.status;
    }
    if (information)
        *information = io.information;
    return status;
}

static LONG open_endpoint(int family, int type, int protocol, HANDLE *file)
{
    WCHAR text[] = L"\\Device\\Afd\\Endpoint";
    counted name = { sizeof text - 2, sizeof text, text };
    attributes about = { sizeof about, NULL, &name, 0x40, NULL, NULL };
    io_block io;
    struct {
        ULONG next;
        BYTE flags, name_length;
        USHORT value_length;
        char name[16];
        ULONG endpoint_flags, group;
        int family, type, protocol;
        ULONG transport_length;
        BYTE rest[6];
    } packet = { 0, 0, 15, 30, "AfdOpenPacketXX", 0, 0, family, type, protocol, 0, { 0 } };
    return NtCreateFile(file, 0xC0140000, &about, &io, NULL, 0, 3, 1, 0, &packet, 24 + 30);
}

static void native(void)
{
    struct { ULONG share; struct sockaddr_in address; } bound = { 2, loopback(0) };
    struct { ULONG_PTR san; HANDLE root, endpoint; struct sockaddr_in address; } target;
    struct { ULONG san, backlog, delayed; } listening = { 0, 5, 0 };
    struct { LONG sequence; struct sockaddr_in address; } response;
    struct { ULONG san; LONG sequence; HANDLE accepted; } accepting;
    WSABUF part;
    struct { WSABUF *parts; ULONG count, flags, transport; } transfer = { &part, 1, 0, 0x20 };
    struct { WSABUF *parts; ULONG count, flags, transport; void *address; ULONG *length; } from;
    struct {
        WSABUF *parts; ULONG count, flags; void *request[5];
        ULONG data_length; void *data; ULONG options_length; void *options; ULONG address_length; void *address;
    } to;
    struct sockaddr_in sender;
    HANDLE server, client, peer, datagrams[2];
    ULONG_PTR length = 0;
    ULONG sender_length = sizeof sender;
    char buffer[64] = "";
    LONG status = open_endpoint(AF_INET, SOCK_STREAM, IPPROTO_TCP, &server);
    printf("native: open %lx", status);
    if (status) {
        printf("\n");
        return;
    }
    open_endpoint(AF_INET, SOCK_STREAM, IPPROTO_TCP, &client);
    open_endpoint(AF_INET, SOCK_STREAM, IPPROTO_TCP, &peer);
    printf(", bind %lx", device(server, 0x12003, &bound, sizeof bound, &bound.address, sizeof bound.address, NULL));
    printf(", listen %lx", device(server, 0x1200B, &listening, sizeof listening, NULL, 0, NULL));
    memset(&target, 0, sizeof target);
    target.address = bound.address;
    printf(", connect %lx", device(client, 0x12007, &target, sizeof target, NULL, 0, NULL));
    status = device(server, 0x1200C, NULL, 0, &response, sizeof response, NULL);
    printf(", wait %lx from %s", status, inet_ntoa(response.address.sin_addr));
    accepting.san = 0;
    accepting.sequence = response.sequence;
    accepting.accepted = peer;
    printf(", accept %lx\n", device(server, 0x12010, &accepting, sizeof accepting, NULL, 0, NULL));
    part.buf = "a question";
    part.len = 10;
    transfer.transport = 0;
    status = device(client, 0x1201F, &transfer, sizeof transfer, NULL, 0, &length);
    printf("native: send %lx, %d bytes", status, (int)length);
    part.buf = buffer;
    part.len = sizeof buffer;
    transfer.transport = 0x20;
    status = device(peer, 0x12017, &transfer, sizeof transfer, NULL, 0, &length);
    printf(", receive %lx, %d bytes: %s", status, (int)length, buffer);
    status = device(peer, 0x1203F, NULL, 0, &sender, sizeof sender, NULL);
    printf(", peer %lx %s\n", status, inet_ntoa(sender.sin_addr));
    open_endpoint(AF_INET, SOCK_DGRAM, IPPROTO_UDP, &datagrams[0]);
    open_endpoint(AF_INET, SOCK_DGRAM, IPPROTO_UDP, &datagrams[1]);
    bound.address = loopback(0);
    status = device(datagrams[0], 0x12003, &bound, sizeof bound, &bound.address, sizeof bound.address, NULL);
    memset(&to, 0, sizeof to);
    to.parts = &part;
    to.count = 1;
    to.address_length = sizeof bound.address;
    to.address = &bound.address;
    part.buf = "datagram";
    part.len = 8;
    status = device(datagrams[1], 0x12023, &to, sizeof to, NULL, 0, &length);
    printf("native: send %lx, %d bytes", status, (int)length);
    memset(&from, 0, sizeof from);
    memset(buffer, 0, sizeof buffer);
    from.parts = &part;
    from.count = 1;
    from.transport = 0x20;
    from.address = &sender;
    from.length = &sender_length;
    part.buf = buffer;
    part.len = sizeof buffer;
    status = device(datagrams[0], 0x1201B, &from, sizeof from, NULL, 0, &length);
    printf(", receive %lx, %d bytes: %s from %s\n", status, (int)length, buffer, inet_ntoa(sender.sin_addr));
}

/* What a sandbox may refuse: tells the error of each attempt. */
static void outside(const char *host)
{
    struct sockaddr_in address = loopback(9), any = loopback(0);
    SOCKET made = socket(AF_INET, SOCK_STREAM, 0), datagrams = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in6 mapped;
    u_long on = 1;
    int result;
    printf("outside: socket %d", made != INVALID_SOCKET);
    if (made == INVALID_SOCKET) {
        printf(", error %d\n", WSAGetLastError());
        return;
    }
    address.sin_addr.s_addr = inet_addr(host);
    result = sendto(datagrams, "x", 1, 0, (struct sockaddr *)&address, sizeof address);
    printf(", sendto %d", result == 1 ? 0 : WSAGetLastError());
    result = bind(datagrams, (struct sockaddr *)&address, sizeof address);
    printf(", bind %d", result == 0 ? 0 : WSAGetLastError());
    ioctlsocket(made, FIONBIO, &on);
    result = connect(made, (struct sockaddr *)&address, sizeof address);
    printf(", connect %d", result == 0 ? 0 : WSAGetLastError());
    closesocket(made);
    made = socket(AF_INET6, SOCK_STREAM, 0);
    on = 0;
    setsockopt(made, IPPROTO_IPV6, IPV6_V6ONLY, (char *)&on, sizeof on);
    memset(&mapped, 0, sizeof mapped);
    mapped.sin6_family = AF_INET6;
    mapped.sin6_port = htons(9);
    mapped.sin6_addr.s6_addr[10] = mapped.sin6_addr.s6_addr[11] = 0xFF;
    memcpy(&mapped.sin6_addr.s6_addr[12], &address.sin_addr, 4);
    on = 1;
    ioctlsocket(made, FIONBIO, &on);
    result = connect(made, (struct sockaddr *)&mapped, sizeof mapped);
    printf(", mapped %d", result == 0 ? 0 : WSAGetLastError());
    closesocket(made);
    made = socket(AF_INET, SOCK_STREAM, 0);
    any.sin_addr.s_addr = 0;
    result = bind(made, (struct sockaddr *)&any, sizeof any) || listen(made, 1);
    printf(", any %d", result == 0 ? 0 : WSAGetLastError());
    made = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
    printf(", raw %d\n", made != INVALID_SOCKET ? 0 : WSAGetLastError());
}

static void lookup(const char *host, const char *port)
{
    struct addrinfo hints, *found;
    int result;
    memset(&hints, 0, sizeof hints);
    hints.ai_family = AF_INET;
    hints.ai_socktype = SOCK_STREAM;
    result = getaddrinfo(host, port, &hints, &found);
    printf("lookup: %d %s\n", result, result ? "" : inet_ntoa(((struct sockaddr_in *)found->ai_addr)->sin_addr));
}

static void run(const char *word)
{
    if (!strcmp(word, "tcp")) tcp(AF_INET, "tcp");
    if (!strcmp(word, "ipv6")) tcp(AF_INET6, "ipv6");
    if (!strcmp(word, "udp")) udp();
    if (!strcmp(word, "select")) test_select();
    if (!strcmp(word, "poll")) test_poll();
    if (!strcmp(word, "nonblocking")) nonblocking();
    if (!strcmp(word, "overlapped")) overlapped();
    if (!strcmp(word, "apc")) apcs();
    if (!strcmp(word, "events")) events();
    if (!strcmp(word, "acceptex")) acceptex();
    if (!strcmp(word, "names")) names();
    if (!strcmp(word, "native")) native();
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static const char *all[] = { "tcp", "ipv6", "udp", "select", "poll", "nonblocking", "overlapped", "apc", "events",
                                 "acceptex", "names" };
    WSADATA data;
    int i, result = WSAStartup(0x202, &data);
    if (result) {
        printf("WSAStartup: %d\n", result);
        return 1;
    }
    if (argc == 1)
        for (i = 0; i < (int)(sizeof all / sizeof *all); i++)
            run(all[i]);
    for (i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "outside") && i + 1 < argc)
            outside(argv[++i]);
        else if (!strcmp(argv[i], "lookup") && i + 2 < argc) {
            lookup(argv[i + 1], argv[i + 2]);
            i += 2;
        } else
            run(argv[i]);
    }
    WSACleanup();
    return 0;
}
