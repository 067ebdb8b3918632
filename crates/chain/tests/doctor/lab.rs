//! A folder of images, the tools to make and damage them, and the doctor's word on them.

use catena::doctor::{Code, Finding, Options, Severity, examine_fully};
use catena::ops::{Silent, relink};
use catena::{Chain, Format, Policy, Start, detect};
use catena_format::qcow2::Header;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub fn run(&self, program: &str, args: &[&str]) {
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

    pub fn img(&self, args: &str) {
        self.run("qemu-img", &args.split(' ').collect::<Vec<_>>());
    }

    /// Bytes written over an image behind QEMU's back.
    pub fn patch(&self, name: &str, offset: u64, bytes: &[u8]) {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(self.path(name))
            .unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    /// Makes the backing format extension, which QEMU writes first, one that nobody knows.
    pub fn forget_format(&self, name: &str) {
        self.patch(name, 112, &[0x12, 0x34, 0x56, 0x78]);
    }

    pub fn chain(&self, top: &str) -> Chain {
        detect(&Start::at(self.path(top), None), &Policy::libvirt())
    }

    pub fn examine(&self, top: &str) -> Vec<Finding> {
        let policy = Policy::libvirt();
        examine_fully(&self.chain(top), &Options::new(&policy))
    }

    /// The one finding of a code.
    pub fn finding(&self, top: &str, code: Code) -> Finding {
        one(&self.examine(top), code)
    }

    /// Runs the commands of a cure, and what it cured must be gone.
    pub fn cure(&self, top: &str, finding: &Finding) {
        assert!(!finding.cure.commands.is_empty(), "{finding:#?}");
        for words in &finding.cure.commands {
            let words: Vec<_> = words.iter().filter_map(|word| word.to_str()).collect();
            match words.as_slice() {
                [
                    "catena",
                    verb @ ("relink" | "rebase"),
                    image,
                    "--backing",
                    name,
                    "--backing-format",
                    format,
                    flags @ ..,
                ] => {
                    let request = relink::Request {
                        image: image.into(),
                        backing: Some(relink::NewBacking {
                            name: (*name).to_owned(),
                            format: Format::from_qemu(format).unwrap(),
                        }),
                        safety: match (*verb, flags) {
                            ("relink", []) => relink::Safety::Checked,
                            ("rebase", ["--unsafe"]) => relink::Safety::Unsafe,
                            other => panic!("{other:?}"),
                        },
                    };
                    let plan = relink::plan(&request, &Policy::libvirt(), &Silent).unwrap();
                    assert!(!plan.is_done());
                    plan.execute().unwrap();
                }
                [program, arguments @ ..] => self.run(program, arguments),
                [] => panic!("an empty command"),
            }
        }
        self.lacks(top, finding.code);
    }

    /// Rewrites a header by our own code.
    pub fn header(&self, name: &str, change: impl FnOnce(&mut Header)) {
        let bytes = std::fs::read(self.path(name)).unwrap();
        let mut header = Header::read(&bytes).unwrap();
        change(&mut header);
        let mut area = header.encode().unwrap();
        area.resize(usize::try_from(header.cluster_bits.size()).unwrap(), 0);
        self.patch(name, 0, &area);
    }

    pub fn lacks(&self, top: &str, code: Code) {
        let found = self.examine(top);
        assert!(found.iter().all(|finding| finding.code != code), "{found:#?}");
    }
}

pub fn one(found: &[Finding], code: Code) -> Finding {
    let mut all = found.iter().filter(|finding| finding.code == code);
    match (all.next(), all.next()) {
        (Some(one), None) => one.clone(),
        _ => panic!("not exactly one {code} in {found:#?}"),
    }
}

pub fn assert_at(finding: &Finding, severity: Severity, layer: usize, name: &Path) {
    assert_eq!(
        (finding.severity, finding.layer, finding.name.as_str()),
        (severity, layer, name.display().to_string().as_str()),
        "{finding:#?}"
    );
}

/// An overlay over a base, both qcow2.
pub fn two() -> Lab {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 base.qcow2 1M");
    lab.img("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    lab
}
