//! Where the tour plays: a temporary folder that goes away whatever happens, and the text around what happens in it.

use crate::cli::Cli;
use crate::error::CommandError;
use crate::output;
use anstyle::{AnsiColor, Style};
use catena::{Error, ErrorKind, Result};
use clap::Parser;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use tempfile::TempDir;

const TITLE: Style = Style::new().bold();
const PROMPT: Style = AnsiColor::Green.on_default().bold();
const QUIET: Style = Style::new().dimmed();

/// How often the folder is removed where something is still being put into it.
const REMOVALS: usize = 100;
/// The status of a shell for a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// The folder, which is also the current one, and what is said.
#[derive(Debug)]
pub struct Stage {
    /// Comes first because it is dropped first.
    _interrupt: Interrupt,
    folder: TempDir,
    /// The current folder before.
    home: PathBuf,
    steps: usize,
    step: usize,
    pauses: bool,
}

/// The folder that an interrupt removes, locked from then on. Dropping this waits for the end of the process if there is
/// an interrupt: that the folder has gone is then no error of the tour's.
#[derive(Debug)]
struct Interrupt(Arc<Mutex<Option<PathBuf>>>);

impl Drop for Interrupt {
    fn drop(&mut self) {
        drop(self.0.lock());
    }
}

impl Stage {
    /// Sets it up, for so many steps. With `pauses`, each waits for Enter if somebody sits there.
    ///
    /// From here on the process removes the folder also when it is interrupted or told to end.
    pub fn open(steps: usize, pauses: bool) -> Result<Self> {
        let home = std::env::current_dir().map_err(|error| system(error, "there is no current folder"))?;
        let parent = parent();
        // Held while the folder is made and entered, so that no interrupt comes between that and the note of it.
        let shared = Arc::new(Mutex::new(None::<PathBuf>));
        let note = Arc::clone(&shared);
        let mut made = shared.lock().unwrap_or_else(PoisonError::into_inner);
        ctrlc::set_handler(move || {
            let note = note.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(path) = &*note {
                remove(path);
            }
            std::process::exit(INTERRUPTED);
        })
        .map_err(|error| Error::new(ErrorKind::Io, "cannot watch for Ctrl-C").with_source(error))?;
        let folder = tempfile::Builder::new()
            .prefix("catena-tour-")
            .tempdir_in(&parent)
            .map_err(|error| system(error, "cannot make a temporary folder").with_path(&parent))?;
        *made = Some(folder.path().to_owned());
        // Other users are to be asked about the files in it, so they must come that far.
        set_mode(folder.path(), 0o755)?;
        std::env::set_current_dir(folder.path())
            .map_err(|error| system(error, "cannot enter it").with_path(folder.path()))?;
        drop(made);
        Ok(Self {
            _interrupt: Interrupt(shared),
            folder,
            home,
            steps,
            step: 0,
            pauses: pauses && io::stdout().is_terminal() && io::stdin().is_terminal(),
        })
    }

    /// Begins the next step.
    pub fn step(&mut self, title: &str) -> Result<(), CommandError> {
        if self.step > 0 {
            self.pause()?;
        }
        self.step += 1;
        self.title(title)
    }

    /// Goes on from what is wrong to what cures it, on a screen of its own.
    pub fn cure(&self) -> Result<(), CommandError> {
        self.pause()?;
        self.title("The cure")
    }

    /// Says something, as a paragraph.
    pub fn say(&self, text: &str) -> Result<(), CommandError> {
        let mut out = output::stdout();
        writeln!(out, "\n{text}")?;
        Ok(out.flush()?)
    }

    /// Shows a command that the tour does itself, and does it.
    pub fn shell(&self, line: &str, act: impl FnOnce() -> Result<()>) -> Result<(), CommandError> {
        self.prompt(line)?;
        Ok(act()?)
    }

    /// Shows a command of Catena and runs it as it stands. What it prints, it prints; what is wrong, it says.
    pub fn catena(&self, words: &[&str]) -> Result<ExitCode, CommandError> {
        let quoted: Vec<_> = words.iter().map(catena::detect::quoted).collect();
        self.prompt(&format!("catena {}", quoted.join(" ")))?;
        let words = std::iter::once("catena").chain(words.iter().copied());
        let cli = Cli::try_parse_from(words)
            .map_err(|error| Error::new(ErrorKind::Unsupported, error.to_string()))?;
        Ok(cli.command.run().unwrap_or_else(|error| error.report()))
    }

    /// The same, for a command that must succeed.
    pub fn catena_succeeds(&self, words: &[&str]) -> Result<(), CommandError> {
        match self.catena(words)? == ExitCode::SUCCESS {
            true => Ok(()),
            false => Err(astray(&format!("catena {} did not succeed", words.join(" "))).into()),
        }
    }

    /// Leaves the folder and removes it, and says something at the end.
    pub fn close(self, farewell: &str) -> Result<(), CommandError> {
        let Self { folder, home, .. } = self;
        std::env::set_current_dir(&home).map_err(|error| system(error, "cannot go back").with_path(&home))?;
        let path = folder.path().to_owned();
        folder
            .close()
            .map_err(|error| system(error, "cannot remove the temporary folder").with_path(path))?;
        let mut out = output::stdout();
        writeln!(out, "\n{farewell}")?;
        Ok(out.flush()?)
    }

    fn title(&self, title: &str) -> Result<(), CommandError> {
        let mut out = output::stdout();
        writeln!(out, "\n{TITLE}{}/{}  {title}{TITLE:#}", self.step, self.steps)?;
        Ok(out.flush()?)
    }

    fn prompt(&self, line: &str) -> Result<(), CommandError> {
        let mut out = output::stdout();
        writeln!(out, "\n{PROMPT}${PROMPT:#} {TITLE}{line}{TITLE:#}")?;
        Ok(out.flush()?)
    }

    fn pause(&self) -> Result<(), CommandError> {
        if self.pauses {
            let mut out = output::stdout();
            write!(out, "\n{QUIET}Enter goes on, Ctrl-C stops. {QUIET:#}")?;
            out.flush()?;
            io::stdin().lock().read_line(&mut String::new())?;
        }
        Ok(())
    }
}

/// Removes the folder although something may still be being put into it.
fn remove(folder: &Path) {
    for _ in 0..REMOVALS {
        let _ = std::fs::remove_dir_all(folder);
        if !folder.exists() {
            break;
        }
    }
}

/// The error for a tour that does not go as it should.
pub fn astray(what: &str) -> Error {
    Error::new(ErrorKind::Conflict, format!("the tour went astray: {what}"))
        .with_hint("this is a fault of Catena or an unusual system; please report it")
}

/// Sets who may do what with a file or folder.
pub fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|error| system(error, "cannot change permissions").with_path(path))
}

/// An error of the system, with what it came of.
pub fn system(error: io::Error, what: &'static str) -> Error {
    Error::new(ErrorKind::Io, what).with_source(error)
}

/// The folder for temporary files, or a common one where other users cannot come as far as that.
fn parent() -> PathBuf {
    let usual = std::env::temp_dir();
    let open = |folder: &Path| {
        let real = folder.canonicalize();
        real.is_ok_and(|real| {
            real.ancestors().all(|folder| {
                folder
                    .metadata()
                    .is_ok_and(|found| found.permissions().mode() & 0o001 != 0)
            })
        })
    };
    let writable = |folder: &Path| tempfile::tempfile_in(folder).is_ok();
    let others = ["/tmp", "/var/tmp"].map(PathBuf::from);
    std::iter::once(usual.clone())
        .chain(others)
        .find(|folder| open(folder) && writable(folder))
        .unwrap_or(usual)
}
