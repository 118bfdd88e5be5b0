#include <stddef.h>
int f(int *p){ int a[2]; a[2]=1; if(!p) return *p; return a[0]; }
