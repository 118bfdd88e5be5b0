//! Model-specific registers (SDM vol. 4; APM vol. 2, appendix A).
