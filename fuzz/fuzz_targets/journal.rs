//! Journals of scripts that were cut off: lists of orders, which are read before they are believed.
#![no_main]

use catena::ErrorKind;
use catena::ops::script::{Journal, Script, Step};
use catena_fuzz::plant;
use libfuzzer_sys::fuzz_target;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The file that is read: one for all inputs.
static PATH: OnceLock<PathBuf> = OnceLock::new();

fuzz_target!(
    init: plant(written()),
    |data: &[u8]| {
        let path = PATH.get_or_init(|| std::env::temp_dir().join(format!("catena-fuzz-{}.journal", std::process::id())));
        std::fs::write(path, data).expect("a file");
        let read = look(path);
        // What was never written is cut off when a journal is opened, and so the same is read again.
        assert_eq!(look(path), read);
        // Whoever ends this process leaves nothing.
        std::fs::remove_file(path).expect("it is ours");
    }
);

/// What is read of it, where it is a journal.
fn look(path: &Path) -> Option<(Script, usize)> {
    match Journal::open(path) {
        Ok(journal) => {
            assert!(journal.done() <= journal.script().steps.len());
            let _ = journal.can_be_taken_back();
            for step in &journal.script().steps {
                assert!(!step.to_string().is_empty());
            }
            Some((journal.script().clone(), journal.done()))
        }
        Err(error) => {
            assert!(matches!(
                error.kind(),
                ErrorKind::Corrupt | ErrorKind::Unsupported
            ));
            None
        }
    }
}

/// Journals as scripts write them, at different points.
fn written() -> Vec<(String, Vec<u8>)> {
    let mut script = Script::new("move", "move /a /b");
    script.steps = vec![
        Step::Folder {
            path: "/new".into(),
            like: None,
        },
        Step::Symlink {
            path: "/new/link".into(),
            target: "../image".into(),
        },
        Step::RemoveFolder { path: "/old".into() },
    ];
    let script = serde_json::to_string(&script).expect("names are UTF-8");
    let head = format!("{{\"version\":1,\"id\":\"1-2\",\"process\":1,\"script\":{script}}}\n");
    let lines = [
        "",
        "{\"done\":1}\n",
        "{\"done\":1}\n{\"begun\":1}\n{\"done\":9}\n{\"do",
    ];
    { lines.iter().enumerate() }
        .map(|(number, lines)| (number.to_string(), format!("{head}{lines}").into_bytes()))
        .collect()
}
