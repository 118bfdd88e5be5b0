/* Runs into the limits of its surroundings: limits memory | disk | processes. Prints where it was stopped. */
#include <windows.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[1] : "";
    if (!strcmp(word, "memory")) {
        int megabytes = 0;
        char *block;
        while (megabytes < 4096 && (block = VirtualAlloc(NULL, 1 << 20, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE))) {
            memset(block, 1, 1 << 20);
            megabytes++;
        }
        printf("memory: error %lu after %s\n", megabytes < 4096 ? GetLastError() : 0,
               megabytes < 4 ? "nothing" : megabytes < 4096 ? "some" : "all");
    } else if (!strcmp(word, "disk")) {
        static char block[65536];
        int blocks = 0;
        DWORD written;
        HANDLE file = CreateFileA("big", GENERIC_WRITE, 0, NULL, CREATE_ALWAYS, 0, NULL);
        if (file == INVALID_HANDLE_VALUE) {
            printf("disk: error %lu\n", GetLastError());
            return 1;
        }
        while (blocks < 1024 && WriteFile(file, block, sizeof block, &written, NULL))
            blocks++;
        printf("disk: error %lu after %d KB\n", blocks < 1024 ? GetLastError() : 0, blocks * 64);
        CloseHandle(file);
        printf("disk: deleting gives %d\n", DeleteFileA("big"));
        file = CreateFileA("small", GENERIC_WRITE, 0, NULL, CREATE_ALWAYS, 0, NULL);
        printf("disk: there is room again: %d\n", WriteFile(file, block, sizeof block, &written, NULL));
        CloseHandle(file);
    } else if (!strcmp(word, "processes")) {
        PROCESS_INFORMATION started[64];
        int count = 0, i;
        char line[512];
        sprintf(line, "\"%s\" wait", argv[0]);
        while (count < 64) {
            STARTUPINFOA startup = { sizeof startup };
            char copy[512];
            strcpy(copy, line);
            if (!CreateProcessA(NULL, copy, NULL, NULL, FALSE, 0, NULL, NULL, &startup, &started[count]))
                break;
            count++;
        }
        printf("processes: error %lu after %d\n", count < 64 ? GetLastError() : 0, count);
        for (i = 0; i < count; i++)
            TerminateProcess(started[i].hProcess, 0);
    } else if (!strcmp(word, "wait")) {
        Sleep(INFINITE);
    } else {
        return 1;
    }
    return 0;
}
