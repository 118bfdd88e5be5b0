//! SSE and SSE2 (SDM vol. 1, chapters 10 and 11), a file per chapter section.
