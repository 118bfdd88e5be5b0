//! From "the engines differ somewhere in here" to one instruction.
//!
//! A [`Scene`] is a processor state with the memory around it, copied page by page as it is needed. Both engines can run
//! a scene again and again: the interpreter over its pages, translated code on a [`Probe`], a machine of its own to which
//! pages are lent. [`search`] walks the interpreter through the instructions in question, gives each of them alone to
//! the probe from the interpreter's state, and stops at the first that ends differently. What goes wrong only in company
//! is then looked for with regions of growing length.

mod case;
mod compare;
mod probe;
mod scene;
mod search;

pub use case::case_text;
pub use compare::differences;
pub use probe::Probe;
pub use scene::{Access, Backing, Ending, Landing, PAGE, Page, Scene, SceneMemory};
pub use search::{Executed, Finding, Found, search, search_scene};
