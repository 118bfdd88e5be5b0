//! Interrupt and exception delivery through the IDT and TSS (SDM vol. 3, 6.12 to 6.14).
