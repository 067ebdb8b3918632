//! The doctor on images that qemu-img made and that were damaged on purpose: every finding, and that its cure cures.
#![cfg(test)]

use catena::doctor::{Code, Finding, Options, Severity, examine, examine_fully};
use catena::{Chain, Format, Policy, Start, detect};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn run(&self, program: &str, args: &[&str]) {
        let output = Command::new(program)
            .current_dir(self.folder.path())
            .args(args)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn img(&self, args: &str) {
        self.run("qemu-img", &args.split(' ').collect::<Vec<_>>());
    }

    /// Bytes written over an image behind QEMU's back.
    fn patch(&self, name: &str, offset: u64, bytes: &[u8]) {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(self.path(name))
            .unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    /// Makes the backing format extension, which QEMU writes first, one that nobody knows.
    fn forget_format(&self, name: &str) {
        self.patch(name, 112, &[0x12, 0x34, 0x56, 0x78]);
    }

    fn chain(&self, top: &str) -> Chain {
        detect(&Start::at(self.path(top), None), &Policy::libvirt())
    }

    fn examine(&self, top: &str) -> Vec<Finding> {
        let policy = Policy::libvirt();
        examine_fully(&self.chain(top), &Options::new(&policy))
    }

    /// The one finding of a code.
    fn finding(&self, top: &str, code: Code) -> Finding {
        one(&self.examine(top), code)
    }

    fn lacks(&self, top: &str, code: Code) {
        let found = self.examine(top);
        assert!(found.iter().all(|finding| finding.code != code), "{found:#?}");
    }
}

fn one(found: &[Finding], code: Code) -> Finding {
    let mut all = found.iter().filter(|finding| finding.code == code);
    match (all.next(), all.next()) {
        (Some(one), None) => one.clone(),
        _ => panic!("not exactly one {code} in {found:#?}"),
    }
}

fn assert_at(finding: &Finding, severity: Severity, layer: usize, name: &Path) {
    assert_eq!(
        (finding.severity, finding.layer, finding.name.as_str()),
        (severity, layer, name.display().to_string().as_str()),
        "{finding:#?}"
    );
}

#[test]
fn a_healthy_chain_has_no_findings() {
    let lab = Lab::new();
    lab.img("create -q -f raw base.raw 1M");
    lab.img("create -q -f qcow2 -b base.raw -F raw mid.qcow2");
    lab.img("create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2");
    assert_eq!(lab.examine("top.qcow2"), []);
    let policy = Policy::libvirt();
    assert_eq!(examine(&lab.chain("top.qcow2"), &Options::new(&policy)), []);
}

#[test]
fn an_accepted_format_that_is_not_recorded_is_a_warning() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 base.qcow2 1M");
    lab.img("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    lab.forget_format("top.qcow2");
    let finding = lab.finding("top.qcow2", Code::FormatNotRecorded);
    assert_at(&finding, Severity::Warning, 0, &lab.path("top.qcow2"));
    let fix = finding.cure.fix.clone().unwrap();
    assert_eq!((fix.name.as_str(), fix.format), ("base.qcow2", Format::Qcow2));
    let expected = format!(
        "catena relink {} --backing base.qcow2 --backing-format qcow2",
        lab.shown("top.qcow2")
    );
    assert_eq!(finding.cure.command_lines().collect::<Vec<_>>(), [expected]);
    lab.img("rebase -u -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    lab.lacks("top.qcow2", Code::FormatNotRecorded);
}
