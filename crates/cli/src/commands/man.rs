//! `catena man`: the manual pages, one a verb, made from the command line's own help.

use crate::cli::Cli;
use crate::error::CommandError;
use catena::{Error, ErrorKind};
use clap::CommandFactory;
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder to write catena.1, catena-show.1 and so on into; made if there is none
    dir: PathBuf,
}

/// Writes the pages.
pub fn run(args: &Args) -> Result<ExitCode, CommandError> {
    let made = std::fs::create_dir_all(&args.dir);
    made.and_then(|()| clap_mangen::generate_to(Cli::command(), &args.dir))
        .map_err(|error| {
            Error::new(ErrorKind::Io, "cannot write the manual pages")
                .with_path(&args.dir)
                .with_source(error)
        })?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_come_with_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("share/man1");
        // The second time it is there already.
        for _ in 0..2 {
            run(&Args { dir: dir.clone() }).unwrap();
        }
        for page in ["catena.1", "catena-show.1", "catena-man.1", "catena-qemu-img.1"] {
            let text = std::fs::read_to_string(dir.join(page)).unwrap();
            assert!(text.contains(".TH catena"), "{page}: {text}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let dir = file.path().join("man1");
        match run(&Args { dir: dir.clone() }) {
            Err(CommandError::Failed(error)) => assert_eq!(error.path(), Some(dir.as_path())),
            other => panic!("{other:?}"),
        }
    }
}
