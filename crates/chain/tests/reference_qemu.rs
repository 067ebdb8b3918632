//! What references mean, against QEMU: it opens the bytes that our reading names, and refuses what we say it refuses.

#![cfg(test)]

use catena::reference::differs_from_qemu;
use catena::{Reading, Reference, Source};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A working directory with an overlay in a folder below, and bases of different sizes beside either.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("below/sub")).unwrap();
        for (name, kilobytes) in [
            ("base", 64),
            ("below/base", 128),
            ("below/sub/a:b", 256),
            ("below/a \"b\"", 512),
        ] {
            let file = std::fs::File::create(folder.path().join(name)).unwrap();
            file.set_len(kilobytes << 10).unwrap();
        }
        Self { folder }
    }

    fn overlay(&self) -> PathBuf {
        self.folder.path().join("below/top")
    }

    /// The size QEMU sees below an overlay that records the string. `None` where it refuses.
    fn qemu(&self, recorded: &str) -> Option<u64> {
        let created = self
            .tool(&[
                "create",
                "-q",
                "-u",
                "-f",
                "qcow2",
                "-F",
                "raw",
                "-b",
                recorded,
                "below/top",
                "1M",
            ])
            .0;
        assert!(created, "{recorded}");
        let (opened, text) = self.tool(&["info", "--output=json", "--backing-chain", "below/top"]);
        let chain: serde_json::Value = serde_json::from_str(&text).ok().filter(|_| opened)?;
        chain.get(1)?.get("virtual-size")?.as_u64()
    }

    fn tool(&self, args: &[&str]) -> (bool, String) {
        let output = Command::new("qemu-img")
            .args(args)
            .current_dir(self.folder.path())
            .output()
            .unwrap_or_else(|error| panic!("qemu-img is needed for this test: {error}"));
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    /// The size of what a source names, seen from the working directory.
    fn size(&self, source: &Source) -> u64 {
        let path = self.folder.path().join(source.path().unwrap_or(Path::new("")));
        let length = std::fs::metadata(&path)
            .unwrap_or_else(|error| panic!("{path:?}: {error}"))
            .len();
        let part = source
            .slice
            .map(|slice| slice.size.unwrap_or(length - slice.offset));
        part.unwrap_or(length)
    }
}

#[test]
fn qemu_opens_the_bytes_that_a_reference_names() {
    let place = Place::new();
    let absolute = place.folder.path().join("below/base").display().to_string();
    for (text, differs) in [
        ("base", false),
        ("../base", false),
        ("./base", false),
        ("sub/a:b", false),
        (absolute.as_str(), false),
        (&format!("file:{absolute}"), true),
        ("file:base", true),
        (
            r#"json:{"driver":"raw","file":{"driver":"file","filename":"base"}}"#,
            true,
        ),
        (
            &format!(r#"json:{{"driver":"raw","file.driver":"file","file.filename":"{absolute}"}}"#),
            false,
        ),
        (&format!(r#"json:{{"file.filename":"{absolute}"}}"#), true),
        (
            &format!(r#"json:{{"driver":"raw","offset":512,"file":{{"filename":"{absolute}"}}}}"#),
            true,
        ),
        (
            &format!(r#"json:{{"driver":"raw","offset":"1k","size":"2k","file.filename":"{absolute}"}}"#),
            true,
        ),
        (
            &format!(
                r#"json:{{"driver":"raw","size":4096,"file":{{"driver":"file","filename":"{absolute}"}}}}"#
            ),
            false,
        ),
        (
            "json:{'driver':'raw','file':{'driver':'file','filename':'below/a \"b\"'}}",
            true,
        ),
        (
            &format!(
                r#"json:{{"driver":"raw","file":{{"driver":"raw","offset":512,"file.filename":"{absolute}"}}}}"#
            ),
            true,
        ),
    ] {
        let reference = Reference::parse(text, Reading::Catena).unwrap();
        let overlay = Source::file(place.overlay());
        // To QEMU, only a plain name is relative to the overlay.
        let source = match reference.relative_name() {
            Some(_) => reference.resolve(&overlay),
            None => reference.unresolved(),
        };
        assert_eq!(place.qemu(text), Some(place.size(&source)), "{text}");
        let sentence = differs_from_qemu(text, &overlay);
        assert_eq!(sentence.is_some(), differs, "{text}: {sentence:?}");
    }
}

#[test]
fn qemu_opens_what_is_written_for_a_source() {
    let place = Place::new();
    let path = place.folder.path().join("below/sub/a:b");
    let whole = Source::file(&path);
    let part = Source {
        slice: Some(catena::reference::Slice {
            offset: 1024,
            size: Some(8192),
        }),
        ..whole.clone()
    };
    for source in [whole, part] {
        let recorded = source.to_recorded().unwrap();
        assert_eq!(place.qemu(&recorded), Some(place.size(&source)), "{recorded}");
    }
}

#[test]
fn qemu_refuses_what_is_said_to_be_refused() {
    let place = Place::new();
    for text in [
        "foo:bar",
        "json:{}",
        r#"json:{"driver":"raw","driver":"raw","file":{"driver":"file","filename":"base"}}"#,
        r#"json:{"driver":"raw","offset":"x","file":{"driver":"file","filename":"base"}}"#,
        "json:{'driver':'raw','file':{'driver':'file','filename':'base'},}",
        "host_device:",
    ] {
        assert!(Reference::parse(text, Reading::Catena).is_err(), "{text}");
        assert_eq!(place.qemu(text), None, "{text}");
    }
    for text in [
        "tftp://h.invalid/f",
        "vxhs://h.invalid/f",
        "nbd://h.invalid/e?x=1",
    ] {
        assert!(
            differs_from_qemu(text, &Source::file(place.overlay())).is_some(),
            "{text}"
        );
        assert_eq!(place.qemu(text), None, "{text}");
    }
}
