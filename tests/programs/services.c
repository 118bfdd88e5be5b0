/* What common programs ask of the system beyond plain files: standard handles, random numbers, memory, sockets, locks,
 * times of folders. Every line must be what native Windows says. */
#include <winsock2.h>
#include <windows.h>
#include <bcrypt.h>
#include <stdio.h>

static void streams(void)
{
    DWORD mode;
    HANDLE in = GetStdHandle(STD_INPUT_HANDLE), out = GetStdHandle(STD_OUTPUT_HANDLE);
    char byte;
    DWORD read = 9;

    printf("types %lu %lu\n", GetFileType(in), GetFileType(out));
    printf("console mode %d", GetConsoleMode(out, &mode));
    printf(" %lu\n", GetLastError());
    printf("read %d", ReadFile(in, &byte, 1, &read, NULL));
    printf(" %lu\n", read);
    out = CreateFileA("CONOUT$", GENERIC_READ | GENERIC_WRITE, 3, NULL, OPEN_EXISTING, 0, NULL);
    printf("console %d\n", out != INVALID_HANDLE_VALUE);
}

static void randomness(void)
{
    HCRYPTPROV provider;
    unsigned char bytes[16];

    printf("bcrypt %lx\n", BCryptGenRandom(NULL, bytes, sizeof bytes, BCRYPT_USE_SYSTEM_PREFERRED_RNG));
    printf("provider %d\n", CryptAcquireContextW(&provider, NULL, NULL, PROV_RSA_FULL, CRYPT_VERIFYCONTEXT));
    printf("generate %d\n", CryptGenRandom(provider, sizeof bytes, bytes));
}

static void memory(void)
{
    MEMORYSTATUSEX status = {sizeof status};

    printf("memory %d", GlobalMemoryStatusEx(&status));
    printf(" %d\n", status.ullTotalPhys != 0 && status.ullAvailPhys != 0);
    printf("up for a while %d\n", GetTickCount() > 10000);
}

static void sockets(void)
{
    WSADATA data;
    struct sockaddr_in address = {AF_INET};
    int length = sizeof address, value = 0, size = sizeof value;
    u_long nonblocking = 1;
    SOCKET stream, datagram;
    fd_set set;
    struct timeval none = {0, 0};

    printf("startup %d\n", WSAStartup(MAKEWORD(2, 2), &data));
    stream = socket(AF_INET, SOCK_STREAM, 0);
    datagram = socket(AF_INET, SOCK_DGRAM, 0);
    printf("sockets %d %d\n", stream != INVALID_SOCKET, datagram != INVALID_SOCKET);
    printf("get type %d", getsockopt(stream, SOL_SOCKET, SO_TYPE, (char *)&value, &size));
    printf(" %d\n", value);
    value = 1;
    printf("set nodelay %d\n", setsockopt(stream, IPPROTO_TCP, TCP_NODELAY, (char *)&value, sizeof value));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    printf("bind %d\n", bind(stream, (struct sockaddr *)&address, sizeof address));
    printf("name %d", getsockname(stream, (struct sockaddr *)&address, &length));
    printf(" %d %d\n", length, address.sin_port != 0);
    closesocket(stream);
    stream = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_port = htons(9);
    printf("connect %d", connect(stream, (struct sockaddr *)&address, sizeof address));
    printf(" %d\n", WSAGetLastError());
    printf("nonblocking %d\n", ioctlsocket(datagram, FIONBIO, &nonblocking));
    FD_ZERO(&set);
    FD_SET(datagram, &set);
    printf("select %d\n", select(0, NULL, &set, NULL, &none));
}

static void locks(void)
{
    OVERLAPPED at = {0};
    HANDLE file = CreateFileA("lock.tmp", GENERIC_READ | GENERIC_WRITE, 7, NULL, CREATE_ALWAYS, 0, NULL);
    HANDLE other = CreateFileA("lock.tmp", GENERIC_READ | GENERIC_WRITE, 7, NULL, OPEN_EXISTING, 0, NULL);

    printf("lock %d\n", LockFileEx(file, LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY, 0, 10, 0, &at));
    printf("again %d", LockFileEx(other, LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY, 0, 10, 0, &at));
    printf(" %lu\n", GetLastError());
    printf("unlock %d\n", UnlockFileEx(file, 0, 10, 0, &at));
    CloseHandle(other);
    CloseHandle(file);
    printf("delete %d\n", DeleteFileA("lock.tmp"));
}

static void folders(void)
{
    FILETIME time = {0x12345680, 0x01D00000}, found = {0};
    char path[MAX_PATH], name[MAX_PATH];
    HANDLE folder;

    CreateDirectoryA("folder", NULL);
    folder = CreateFileA("folder", FILE_WRITE_ATTRIBUTES | FILE_READ_ATTRIBUTES, 7, NULL, OPEN_EXISTING,
                         FILE_FLAG_BACKUP_SEMANTICS, NULL);
    printf("set time %d\n", SetFileTime(folder, NULL, NULL, &time));
    printf("get time %d", GetFileTime(folder, NULL, NULL, &found));
    printf(" %d\n", found.dwHighDateTime == time.dwHighDateTime && found.dwLowDateTime == time.dwLowDateTime);
    CloseHandle(folder);
    RemoveDirectoryA("folder");
    GetTempPathA(sizeof path, path);
    printf("temporary file %d\n", GetTempFileNameA(path, "tmp", 0, name) != 0);
    DeleteFileA(name);
}

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    streams();
    randomness();
    memory();
    sockets();
    locks();
    folders();
    return 0;
}
