/* Processes, pipes and jobs, as Win32 programs use them. Prints what happened; native Windows prints the same. */
#include <windows.h>
#include <stdio.h>
#include <stdlib.h>

static void start(const char *line, DWORD flags, STARTUPINFOA *startup, PROCESS_INFORMATION *process)
{
    char copy[512];
    strcpy(copy, line);
    if (!CreateProcessA(NULL, copy, NULL, NULL, TRUE, flags, NULL, NULL, startup, process)) {
        printf("%s: error %lu\n", line, GetLastError());
        exit(1);
    }
}

static DWORD finish(PROCESS_INFORMATION *process)
{
    DWORD code = 0;
    WaitForSingleObject(process->hProcess, INFINITE);
    GetExitCodeProcess(process->hProcess, &code);
    CloseHandle(process->hProcess);
    CloseHandle(process->hThread);
    return code;
}

static void many(const char *self, int count)
{
    char line[512];
    int i, right = 0;
    for (i = 0; i < count; i++) {
        STARTUPINFOA startup = { sizeof startup };
        PROCESS_INFORMATION process;
        sprintf(line, "\"%s\" exit %d", self, i & 255);
        start(line, 0, &startup, &process);
        right += finish(&process) == (DWORD)(i & 255);
    }
    printf("%d of %d children ended as told\n", right, count);
}

static void output_of_child(void)
{
    SECURITY_ATTRIBUTES inherit = { sizeof inherit, NULL, TRUE };
    STARTUPINFOA startup = { sizeof startup };
    PROCESS_INFORMATION process;
    HANDLE reader, writer;
    char text[256];
    DWORD length, total = 0;
    CreatePipe(&reader, &writer, &inherit, 0);
    SetHandleInformation(reader, HANDLE_FLAG_INHERIT, 0);
    startup.dwFlags = STARTF_USESTDHANDLES;
    startup.hStdInput = GetStdHandle(STD_INPUT_HANDLE);
    startup.hStdOutput = startup.hStdError = writer;
    start("cmd /c echo first& echo second", 0, &startup, &process);
    CloseHandle(writer);
    while (ReadFile(reader, text + total, sizeof text - total, &length, NULL) && length)
        total += length;
    printf("pipe: error %lu at the end, %lu bytes: %.*s", GetLastError(), total, (int)total, text);
    printf("exit code %lu\n", finish(&process));
    CloseHandle(reader);
}

static void named_pipe(void)
{
    const char *name = "\\\\.\\pipe\\lstar-test";
    OVERLAPPED listen = { 0 }, read = { 0 };
    char text[64];
    DWORD length = 0, mode = PIPE_TYPE_MESSAGE | PIPE_READMODE_MESSAGE;
    HANDLE server = CreateNamedPipeA(name, PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED, mode, 1, 4096, 4096, 0, NULL);
    HANDLE port = CreateIoCompletionPort(server, NULL, 7, 0), client;
    ULONG_PTR key = 0;
    OVERLAPPED *finished = NULL;
    BOOL ok;
    listen.hEvent = CreateEventA(NULL, TRUE, FALSE, NULL);
    ok = ConnectNamedPipe(server, &listen);
    printf("listen: %d, error %lu\n", ok, GetLastError());
    client = CreateFileA(name, GENERIC_READ | GENERIC_WRITE, 0, NULL, OPEN_EXISTING, 0, NULL);
    ok = GetQueuedCompletionStatus(port, &length, &key, &finished, 1000);
    printf("connected: %d, key %lu, %s\n", ok, (unsigned long)key, finished == &listen ? "listen" : "other");
    CreateFileA(name, GENERIC_READ | GENERIC_WRITE, 0, NULL, OPEN_EXISTING, 0, NULL);
    printf("a second client: error %lu\n", GetLastError());
    ok = ReadFile(server, text, sizeof text, NULL, &read);
    printf("read: %d, error %lu\n", ok, GetLastError());
    WriteFile(client, "message", 7, &length, NULL);
    ok = GetQueuedCompletionStatus(port, &length, &key, &finished, 1000);
    printf("read: %d, %.*s\n", ok, (int)length, text);
    CloseHandle(client);
    ok = ReadFile(server, text, sizeof text, NULL, &read);
    printf("after the client's end: %d, error %lu\n", ok, GetLastError());
    CloseHandle(server);
}

static DWORD WINAPI unreachable(void *argument) { return (DWORD)(ULONG_PTR)argument; }

static void other_process(const char *self)
{
    STARTUPINFOA startup = { sizeof startup };
    PROCESS_INFORMATION process;
    HANDLE section, thread, handle = NULL;
    char line[512], text[16] = { 0 };
    SIZE_T length;
    BOOL inside = FALSE;
    DWORD code;
    void *page;
    sprintf(line, "\"%s\" exit 3", self);
    start(line, CREATE_SUSPENDED, &startup, &process);
    page = VirtualAllocEx(process.hProcess, NULL, 4096, MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE);
    WriteProcessMemory(process.hProcess, page, "remote", 6, &length);
    ReadProcessMemory(process.hProcess, page, text, 6, &length);
    printf("memory of another process: %s\n", text);
    section = CreateFileMappingA(INVALID_HANDLE_VALUE, NULL, PAGE_READWRITE, 0, 4096, NULL);
    DuplicateHandle(GetCurrentProcess(), section, process.hProcess, &handle, 0, FALSE, DUPLICATE_SAME_ACCESS);
    printf("duplicated: %d\n", handle != NULL);
    thread = CreateRemoteThread(process.hProcess, NULL, 0, unreachable, (void *)5, 0, NULL);
    WaitForSingleObject(thread, INFINITE);
    GetExitCodeThread(thread, &code);
    printf("remote thread: %lu\n", code);
    {
        JOBOBJECT_EXTENDED_LIMIT_INFORMATION limits = { 0 };
        HANDLE job = CreateJobObjectA(NULL, NULL);
        limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
        SetInformationJobObject(job, JobObjectExtendedLimitInformation, &limits, sizeof limits);
        AssignProcessToJobObject(job, process.hProcess);
        IsProcessInJob(process.hProcess, job, &inside);
        printf("in the job: %d, wait %lu\n", inside, WaitForSingleObject(process.hProcess, 0));
        CloseHandle(job);
        printf("job closed: wait %lu\n", WaitForSingleObject(process.hProcess, 1000));
        finish(&process);
    }
    start(line, CREATE_SUSPENDED, &startup, &process);
    TerminateProcess(process.hProcess, 77);
    printf("terminated: %lu\n", finish(&process));
    start(line, CREATE_SUSPENDED, &startup, &process);
    ResumeThread(process.hThread);
    printf("resumed: %lu\n", finish(&process));
}

int main(int argc, char **argv)
{
    STARTUPINFOA startup = { sizeof startup };
    PROCESS_INFORMATION process;
    char self[MAX_PATH];
    FILE *batch;
    if (argc > 2 && !strcmp(argv[1], "exit"))
        return atoi(argv[2]);
    GetModuleFileNameA(NULL, self, sizeof self);
    if (argc > 2 && !strcmp(argv[1], "many")) {
        many(self, atoi(argv[2]));
        return 0;
    }
    setvbuf(stdout, NULL, _IONBF, 0);
    many(self, 20);
    output_of_child();
    named_pipe();
    other_process(self);
    batch = fopen("t.bat", "w");
    fputs("@echo batch %1\n@exit /b 9\n", batch);
    fclose(batch);
    start("t.bat argument", 0, &startup, &process);
    printf("batch file: %lu\n", finish(&process));
    start("cmd /c cmd /c exit 4", 0, &startup, &process);
    printf("grandchild: %lu\n", finish(&process));
    return 0;
}
