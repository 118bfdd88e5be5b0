//! The host's terminal: its size, how it treats input, and that it gets back what was changed.

use std::sync::{Mutex, PoisonError};

use rustix::termios::{InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios};

use super::host::TerminalMode;

/// What standard input's terminal was set to before the first change.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// Columns and rows, if any of the standard streams is a terminal.
pub fn size() -> Option<(u16, u16)> {
    let streams = [rustix::stdio::stdout(), rustix::stdio::stderr(), rustix::stdio::stdin()];
    let size = streams.into_iter().find_map(|stream| rustix::termios::tcgetwinsize(stream).ok())?;
    Some((size.ws_col, size.ws_row))
}

/// Sets standard input's terminal, if it is one.
pub fn set(mode: TerminalMode) {
    let stdin = rustix::stdio::stdin();
    let Ok(now) = rustix::termios::tcgetattr(stdin) else { return };
    let mut original = ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner);
    let before = original.get_or_insert_with(|| now.clone());
    let mut wanted = before.clone();
    wanted.local_modes.set(LocalModes::ECHO, mode.echo);
    wanted.local_modes.set(LocalModes::ICANON, mode.lines);
    wanted.local_modes.set(LocalModes::ISIG, mode.signals);
    if !mode.lines {
        // Keys as they are, one at a time.
        wanted.local_modes.remove(LocalModes::IEXTEN);
        wanted.input_modes.remove(InputModes::ICRNL | InputModes::INLCR | InputModes::IGNCR | InputModes::IXON);
        wanted.special_codes[SpecialCodeIndex::VMIN] = 1;
        wanted.special_codes[SpecialCodeIndex::VTIME] = 0;
    }
    let differs = wanted.local_modes != now.local_modes || wanted.input_modes != now.input_modes;
    if differs {
        // A terminal that refuses stays as it is: lines then come with echo.
        let _ = rustix::termios::tcsetattr(stdin, OptionalActions::Now, &wanted);
    }
}

/// Gives the terminal back as it was. For every way on which the process ends.
pub fn restore() {
    let original = ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(original) = original {
        // Nothing can be done if it is gone.
        let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &original);
    }
}
