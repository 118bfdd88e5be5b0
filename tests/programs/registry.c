/* The registry across runs and in files: registry set | check | hive. */
#include <windows.h>
#include <stdio.h>
#include <string.h>

static int fail(const char *what, LONG error)
{
    printf("%s: error %ld\n", what, error);
    return 1;
}

static LONG enable(const char *name)
{
    TOKEN_PRIVILEGES wanted = { 1 };
    HANDLE token;
    LONG error;
    if (!OpenProcessToken(GetCurrentProcess(), TOKEN_ADJUST_PRIVILEGES, &token))
        return GetLastError();
    wanted.Privileges[0].Attributes = SE_PRIVILEGE_ENABLED;
    LookupPrivilegeValueA(NULL, name, &wanted.Privileges[0].Luid);
    AdjustTokenPrivileges(token, FALSE, &wanted, 0, NULL, NULL);
    error = GetLastError();
    CloseHandle(token);
    return error;
}

static int check(HKEY root, const char *path)
{
    char text[32] = "";
    DWORD size = sizeof text, number = 0;
    HKEY key;
    LONG error = RegOpenKeyExA(root, path, 0, KEY_READ, &key);
    if (error)
        return fail("open", error);
    RegQueryValueExA(key, "text", NULL, NULL, (BYTE *)text, &size);
    size = sizeof number;
    RegQueryValueExA(key, "number", NULL, NULL, (BYTE *)&number, &size);
    RegCloseKey(key);
    printf("%s %lu\n", text, number);
    return 0;
}

/* The system's own service: not every advapi32 has it. */
static LONG restore(HKEY key, const char *name)
{
    LONG (WINAPI *restore_key)(HANDLE, HANDLE, ULONG) =
        (void *)GetProcAddress(GetModuleHandleA("ntdll.dll"), "NtRestoreKey");
    HANDLE file = CreateFileA(name, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, 0, NULL);
    LONG status = restore_key(key, file, 0);
    CloseHandle(file);
    return status;
}

int main(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[1] : "";
    DWORD number = 42, type;
    LONG error;
    HKEY key;
    if (!strcmp(word, "check"))
        return check(HKEY_CURRENT_USER, "Software\\Example\\Deep");
    error = RegCreateKeyExA(HKEY_CURRENT_USER, "Software\\Example\\Deep", 0, NULL, 0, KEY_ALL_ACCESS, NULL, &key, NULL);
    if (error)
        return fail("create", error);
    RegSetValueExA(key, "text", 0, REG_SZ, (const BYTE *)"kept", 5);
    RegSetValueExA(key, "number", 0, REG_DWORD, (const BYTE *)&number, sizeof number);
    if (!strcmp(word, "set"))
        return 0;

    /* To a file and back. */
    printf("without the privilege: %ld\n", RegSaveKeyA(key, "saved.hiv", NULL));
    if ((error = enable(SE_BACKUP_NAME)) || (error = enable(SE_RESTORE_NAME)))
        return fail("privileges", error);
    if ((error = RegSaveKeyA(key, "saved.hiv", NULL)))
        return fail("save", error);
    RegDeleteValueA(key, "text");
    RegSetValueExA(key, "more", 0, REG_SZ, (const BYTE *)"", 1);
    if ((error = restore(key, "saved.hiv")))
        return fail("restore", error);
    check(HKEY_CURRENT_USER, "Software\\Example\\Deep");
    printf("what was not saved: %ld\n", RegQueryValueExA(key, "more", NULL, &type, NULL, NULL));
    if ((error = RegLoadKeyA(HKEY_LOCAL_MACHINE, "Loaded", "saved.hiv")))
        return fail("load", error);
    check(HKEY_LOCAL_MACHINE, "Loaded");
    if ((error = RegUnLoadKeyA(HKEY_LOCAL_MACHINE, "Loaded")))
        return fail("unload", error);
    printf("unloaded: %ld\n", RegOpenKeyExA(HKEY_LOCAL_MACHINE, "Loaded", 0, KEY_READ, &key));
    printf("no hive: %ld\n", RegLoadKeyA(HKEY_LOCAL_MACHINE, "Loaded", "not.hiv"));
    return 0;
}
