/* What a program does with a console: modes, lines, keys, colours, the cursor. Prints what it finds. */
#include <stdio.h>
#include <windows.h>

static HANDLE out;

static void say(const char *format, DWORD a, DWORD b)
{
    char line[200];
    DWORD written;
    int length = snprintf(line, sizeof line, format, (unsigned long)a, (unsigned long)b);
    WriteFile(out, line, (DWORD)length, &written, NULL);
}

int main(int argc, char **argv)
{
    HANDLE in = GetStdHandle(STD_INPUT_HANDLE);
    DWORD in_mode = 0, out_mode = 0, count = 0, waited;
    CONSOLE_SCREEN_BUFFER_INFO info;
    INPUT_RECORD record;
    COORD place = { 4, 2 };
    WCHAR text[100];
    char byte;

    out = GetStdHandle(STD_OUTPUT_HANDLE);
    if (argc > 1 && argv[1][0] == 's') {
        /* Raw, then wait for a key that never comes. */
        SetConsoleMode(in, 0);
        FlushConsoleInputBuffer(in);
        say("sleeping\n", 0, 0);
        return !ReadFile(in, &byte, 1, &count, NULL);
    }
    if (argc == 1) {
        /* A child on the same console prints the first line. */
        STARTUPINFOA startup = { sizeof startup };
        PROCESS_INFORMATION child;
        char line[MAX_PATH + 10];
        snprintf(line, sizeof line, "\"%s\" child", argv[0]);
        if (!CreateProcessA(NULL, line, NULL, NULL, TRUE, 0, NULL, NULL, &startup, &child)) return 9;
        WaitForSingleObject(child.hProcess, INFINITE);
    }
    if (!GetConsoleMode(in, &in_mode) || !GetConsoleMode(out, &out_mode)) return 1;
    say("modes %lx %lx\n", in_mode, out_mode);
    if (argc > 1) return 0;
    say("types %lu %lu\n", GetFileType(in), GetFileType(out));
    if (!GetConsoleScreenBufferInfo(out, &info)) return 2;
    say("size %lux%lu\n", info.dwSize.X, info.dwSize.Y);
    SetConsoleOutputCP(CP_UTF8);
    WriteConsoleW(out, L"w\x00E9\n", 3, &count, NULL);
    SetConsoleTextAttribute(out, FOREGROUND_RED | FOREGROUND_INTENSITY);
    say("red\n", 0, 0);
    SetConsoleTextAttribute(out, 7);
    SetConsoleCursorPosition(out, place);
    GetConsoleScreenBufferInfo(out, &info);
    say("cursor %lu,%lu\n", info.dwCursorPosition.X, info.dwCursorPosition.Y);
    SetConsoleTitleW(L"title");

    say("line?\n", 0, 0);
    if (!ReadConsoleW(in, text, 100, &count, NULL)) return 3;
    say("read %lu, last %lx\n", count, text[count - 1]);
    say("bytes?\n", 0, 0);
    if (!ReadFile(in, text, 100, &count, NULL)) return 4;
    say("read %lu, first %lx\n", count, ((unsigned char *)text)[0]);

    SetConsoleMode(in, 0);
    waited = WaitForSingleObject(in, 0);
    FlushConsoleInputBuffer(in);
    say("key? %lx\n", waited, 0);
    WaitForSingleObject(in, INFINITE);
    if (!ReadConsoleInputW(in, &record, 1, &count)) return 5;
    say("key %lx %lx\n", record.Event.KeyEvent.wVirtualKeyCode, record.Event.KeyEvent.bKeyDown);
    ReadConsoleInputW(in, &record, 1, &count);
    say("control?\n", 0, 0);
    if (!ReadFile(in, &byte, 1, &count, NULL)) return 6;
    say("control %lx\n", byte, 0);
    return 0;
}
