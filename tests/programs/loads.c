/* Loads: loads files COUNT | lock THREADS ROUNDS | processes COUNT | map MEGABYTES | nothing.
 * Each ends with "WORD: done, nothing left" when all of it was done and handles and memory are what they were before. */
#include <windows.h>
#include <psapi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static DWORD handles(void)
{
    DWORD count = 0;
    GetProcessHandleCount(GetCurrentProcess(), &count);
    return count;
}

static SIZE_T committed(void)
{
    PROCESS_MEMORY_COUNTERS_EX counters = { sizeof counters };
    GetProcessMemoryInfo(GetCurrentProcess(), (PROCESS_MEMORY_COUNTERS *)&counters, sizeof counters);
    return counters.PrivateUsage;
}

static int fail(const char *what)
{
    printf("%s: error %lu\n", what, GetLastError());
    return 1;
}

/* Files a folder: a host that looks for a name in any case reads a folder for each that is missing. */
#define FILES 1000

static int files(int count)
{
    char name[64];
    int i, found = 0;
    WIN32_FIND_DATAA data;
    for (i = 0; i < count; i++) {
        if (i % FILES == 0) {
            sprintf(name, "many%03d", i / FILES);
            if (!CreateDirectoryA(name, NULL))
                return fail("folder");
        }
        sprintf(name, "many%03d\\file%06d.txt", i / FILES, i);
        HANDLE file = CreateFileA(name, GENERIC_WRITE, 0, NULL, CREATE_NEW, 0, NULL);
        if (file == INVALID_HANDLE_VALUE)
            return fail("create");
        CloseHandle(file);
    }
    for (i = 0; i < count; i += FILES) {
        sprintf(name, "many%03d\\file*.txt", i / FILES);
        HANDLE find = FindFirstFileA(name, &data);
        if (find == INVALID_HANDLE_VALUE)
            return fail("find");
        do
            found++;
        while (FindNextFileA(find, &data));
        FindClose(find);
    }
    if (found != count) {
        printf("found %d\n", found);
        return 1;
    }
    for (i = 0; i < count; i++) {
        sprintf(name, "many%03d\\file%06d.txt", i / FILES, i);
        if (!DeleteFileA(name))
            return fail("delete");
    }
    for (i = 0; i < count; i += FILES) {
        sprintf(name, "many%03d", i / FILES);
        if (!RemoveDirectoryA(name))
            return fail("remove");
    }
    return 0;
}

static CRITICAL_SECTION section;
static SRWLOCK lock = SRWLOCK_INIT;
static volatile LONG64 under_section, under_lock;
static int rounds;

static DWORD WINAPI contend(void *unused)
{
    int i;
    (void)unused;
    for (i = 0; i < rounds; i++) {
        EnterCriticalSection(&section);
        under_section++;
        LeaveCriticalSection(&section);
        AcquireSRWLockExclusive(&lock);
        under_lock++;
        if (i % 64 == 0)
            SwitchToThread();
        ReleaseSRWLockExclusive(&lock);
    }
    return 0;
}

static int contention(int threads)
{
    static HANDLE started[256];
    int i;
    InitializeCriticalSection(&section);
    under_section = under_lock = 0;
    for (i = 0; i < threads; i++)
        if (!(started[i] = CreateThread(NULL, 65536, contend, NULL, 0, NULL)))
            return fail("thread");
    for (i = 0; i < threads; i++) {
        WaitForSingleObject(started[i], INFINITE);
        CloseHandle(started[i]);
    }
    DeleteCriticalSection(&section);
    if (under_section != (LONG64)threads * rounds || under_lock != under_section) {
        printf("counted %lld, %lld\n", (long long)under_section, (long long)under_lock);
        return 1;
    }
    return 0;
}

static int processes(const char *self, int count)
{
    char line[600];
    int i;
    for (i = 0; i < count; i++) {
        STARTUPINFOA startup = { sizeof startup };
        PROCESS_INFORMATION process;
        DWORD status = 1;
        sprintf(line, "\"%s\" nothing", self);
        if (!CreateProcessA(NULL, line, NULL, NULL, FALSE, 0, NULL, NULL, &startup, &process))
            return fail("process");
        WaitForSingleObject(process.hProcess, INFINITE);
        GetExitCodeProcess(process.hProcess, &status);
        CloseHandle(process.hProcess);
        CloseHandle(process.hThread);
        if (status)
            return fail("status");
    }
    return 0;
}

static int mapped(int megabytes)
{
    HANDLE file = CreateFileA("large", GENERIC_READ | GENERIC_WRITE, 0, NULL, CREATE_ALWAYS, FILE_FLAG_DELETE_ON_CLOSE, NULL);
    HANDLE section;
    LARGE_INTEGER size;
    SIZE_T i, bytes = (SIZE_T)megabytes << 20;
    unsigned char *view;
    int wrong = 0;
    if (file == INVALID_HANDLE_VALUE)
        return fail("create");
    size.QuadPart = (LONGLONG)bytes;
    if (!SetFilePointerEx(file, size, NULL, FILE_BEGIN) || !SetEndOfFile(file))
        return fail("extend");
    if (!(section = CreateFileMappingA(file, NULL, PAGE_READWRITE, 0, 0, NULL)))
        return fail("section");
    if (!(view = MapViewOfFile(section, FILE_MAP_ALL_ACCESS, 0, 0, 0)))
        return fail("view");
    /* A write to each MiB, a read of each 64 KiB. */
    for (i = 0; i < bytes; i += 1 << 20)
        view[i + 17] = (unsigned char)(i >> 20 | 1);
    for (i = 0; i < bytes; i += 1 << 16)
        wrong += view[i + 17] != (i & 0xFFFFF ? 0 : (unsigned char)(i >> 20 | 1));
    if (!FlushViewOfFile(view, 1 << 20))
        return fail("flush");
    UnmapViewOfFile(view);
    CloseHandle(section);
    CloseHandle(file);
    if (wrong)
        printf("%d wrong\n", wrong);
    return wrong != 0;
}

int main(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[1] : "";
    int count = argc > 2 ? atoi(argv[2]) : 0, failed = 1;
    DWORD handles_before;
    SIZE_T memory_before;
    rounds = argc > 3 ? atoi(argv[3]) : 0;
    if (!strcmp(word, "nothing"))
        return 0;
    /* A small load first, so that what is made once is there. */
    if (!strcmp(word, "files"))
        failed = files(10);
    else if (!strcmp(word, "lock"))
        failed = contention(count);
    else if (!strcmp(word, "processes"))
        failed = processes(argv[0], 1);
    else if (!strcmp(word, "map"))
        failed = mapped(1);
    if (failed)
        return 1;
    handles_before = handles();
    memory_before = committed();
    if (!strcmp(word, "files"))
        failed = files(count);
    else if (!strcmp(word, "lock"))
        failed = contention(count);
    else if (!strcmp(word, "processes"))
        failed = processes(argv[0], count);
    else
        failed = mapped(count);
    if (failed)
        return 1;
    if (handles() > handles_before + 2)
        printf("%s: %lu handles, before %lu\n", word, handles(), handles_before);
    else if (committed() > memory_before + (8 << 20))
        printf("%s: %llu bytes, before %llu\n", word, (unsigned long long)committed(), (unsigned long long)memory_before);
    else
        printf("%s: done, nothing left\n", word);
    return 0;
}
