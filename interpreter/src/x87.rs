//! x87 control and state-image instructions.
