//! Formats, references, and how chains end.

use crate::lab::{Lab, assert_at, one, two};
use catena::doctor::{Code, Options, Severity, examine, examine_fully};
use catena::{Format, Policy, Start, detect};
use catena_format::qcow2::Extension;

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

/// A chain of three, the last link without a format, so that the middle is refused.
fn refused() -> Lab {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 base.qcow2 1M");
    lab.img("create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2");
    lab.img("create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2");
    lab.forget_format("top.qcow2");
    lab
}

#[test]
fn a_refused_format_is_an_error_in_libvirts_words_with_the_criteria_and_the_command() {
    let lab = refused();
    let finding = lab.finding("top.qcow2", Code::FormatNotRecorded);
    assert_at(&finding, Severity::Error, 0, &lab.path("top.qcow2"));
    assert_eq!(
        finding.cause,
        format!(
            "format of backing image 'mid.qcow2' of image '{}' was not specified in the image metadata (See \
             https://libvirt.org/kbase/backing_chains.html for troubleshooting)",
            lab.shown("top.qcow2")
        )
    );
    for said in [
        "is qcow2",
        "it is raw (does not hold)",
        "(does not hold, it names 'base.qcow2')",
    ] {
        assert!(finding.consequence.contains(said), "{finding:#?}");
    }
    assert_eq!(finding.cure.fix, None);
    lab.cure("top.qcow2", &finding);
}

#[test]
fn a_recorded_word_that_is_no_format_is_an_error() {
    let lab = two();
    lab.patch("top.qcow2", 120, b"qcow9");
    let finding = lab.finding("top.qcow2", Code::FormatWordUnknown);
    assert_at(&finding, Severity::Error, 0, &lab.path("top.qcow2"));
    assert!(finding.cause.contains("'qcow9'"), "{finding:#?}");
    lab.cure("top.qcow2", &finding);
}

#[test]
fn words_that_libvirt_or_qemu_does_not_have_are_warnings() {
    let lab = Lab::new();
    lab.img("create -q -f vhdx base.vhdx 8M");
    lab.img("create -q -f qcow2 -b base.vhdx -F vhdx top.qcow2");
    let finding = lab.finding("top.qcow2", Code::FormatWordDiffers);
    assert_at(&finding, Severity::Warning, 0, &lab.path("top.qcow2"));
    assert!(finding.consequence.contains("as raw"), "{finding:#?}");

    lab.img("create -q -f parallels base.hdd 8M");
    lab.img("create -q -f qcow2 -b base.hdd -F parallels ploop.qcow2");
    lab.header("ploop.qcow2", |header| {
        header.extensions[0] = Extension::BackingFormat(b"ploop".to_vec());
    });
    let finding = lab.finding("ploop.qcow2", Code::FormatWordDiffers);
    assert!(finding.consequence.contains("QEMU"), "{finding:#?}");

    lab.img("create -q -f qcow2 -b base.vhdx -F raw iso.qcow2");
    lab.header("iso.qcow2", |header| {
        header.extensions[0] = Extension::BackingFormat(b"iso".to_vec());
    });
    std::fs::write(lab.path("base.vhdx"), vec![0; 64 << 10]).unwrap();
    lab.patch("base.vhdx", 32_768, b"\x01CD001\x01");
    let finding = lab.finding("iso.qcow2", Code::FormatWordDiffers);
    assert_eq!(finding.cure.fix.as_ref().unwrap().format, Format::Raw);
    lab.cure("iso.qcow2", &finding);
}

#[test]
fn a_format_that_libvirt_does_not_come_to_is_a_warning() {
    let lab = two();
    lab.header("top.qcow2", |header| {
        let uneven = Extension::Unknown {
            kind: 0x1122_3344,
            data: vec![1, 2, 3],
        };
        header.extensions.insert(0, uneven);
    });
    let finding = lab.finding("top.qcow2", Code::FormatUnseen);
    assert_at(&finding, Severity::Warning, 0, &lab.path("top.qcow2"));
    assert!(finding.cure.fix.is_some());
    lab.cure("top.qcow2", &finding);
}

#[test]
fn an_image_recorded_as_raw_that_is_not_is_a_warning() {
    let lab = two();
    lab.img("rebase -u -f qcow2 -b base.qcow2 -F raw top.qcow2");
    let finding = lab.finding("top.qcow2", Code::FormatMismatch);
    assert_at(&finding, Severity::Warning, 1, &lab.path("base.qcow2"));
    assert!(
        finding.cause.contains("has the header of a qcow2 image"),
        "{finding:#?}"
    );
    let lines: Vec<_> = finding.cure.command_lines().collect();
    let top = lab.shown("top.qcow2");
    assert_eq!(
        lines,
        [format!(
            "catena rebase {top} --backing base.qcow2 --backing-format qcow2 --unsafe"
        )]
    );
    assert!(
        finding
            .cure
            .advice
            .as_ref()
            .unwrap()
            .contains("what the guest sees")
    );
    lab.cure("top.qcow2", &finding);
}

#[test]
fn a_format_that_the_user_gave_wrongly_is_for_the_user_to_give_rightly() {
    let lab = two();
    let policy = Policy::libvirt();
    let chain = detect(&Start::at(lab.path("base.qcow2"), Some(Format::Raw)), &policy);
    let finding = one(
        &examine_fully(&chain, &Options::new(&policy)),
        Code::FormatMismatch,
    );
    assert!(finding.cure.commands.is_empty(), "{finding:#?}");
    assert!(finding.cure.advice.unwrap().contains("'-f qcow2'"));
}

#[test]
fn what_a_guest_wrote_to_the_end_of_its_raw_disk_is_no_format() {
    let lab = Lab::new();
    lab.img("create -q -f vpc -o subformat=fixed,force_size=on footer.vpc 1M");
    lab.img("create -q -f qcow2 -b footer.vpc -F raw top.qcow2");
    lab.lacks("top.qcow2", Code::FormatMismatch);
    lab.lacks("top.qcow2", Code::FormatAmbiguous);
}

#[test]
fn what_is_no_file_is_not_to_be_restored_from_a_backup() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("dir")).unwrap();
    lab.run("mkfifo", &["fifo"]);
    for (name, kind) in [
        ("/dev/null", "character device"),
        ("dir", "directory"),
        ("fifo", "FIFO"),
    ] {
        lab.img(&format!("create -q -u -f qcow2 -b {name} -F raw top.qcow2 1M"));
        let finding = lab.finding("top.qcow2", Code::Unreadable);
        assert_eq!((finding.severity, finding.layer), (Severity::Error, 1));
        assert!(finding.cause.contains(&format!("is a {kind}")), "{finding:#?}");
        let advice = finding.cure.advice.unwrap();
        assert!(advice.starts_with("record the image that is meant"), "{advice}");
    }
}

#[test]
fn an_image_recorded_as_qcow2_that_is_raw_is_an_error() {
    let lab = two();
    std::fs::write(lab.path("base.qcow2"), vec![0; 1 << 20]).unwrap();
    let finding = lab.finding("top.qcow2", Code::FormatMismatch);
    assert_at(&finding, Severity::Error, 0, &lab.path("top.qcow2"));
    assert!(finding.cause.contains("it looks raw"), "{finding:#?}");
    lab.cure("top.qcow2", &finding);
}

#[test]
fn an_image_that_looks_like_two_formats_is_a_warning_and_neither_believed_nor_opened_unasked() {
    let lab = two();
    lab.patch("base.qcow2", 32_768, b"\x01CD001\x01");
    let finding = lab.finding("top.qcow2", Code::FormatAmbiguous);
    assert_at(&finding, Severity::Warning, 1, &lab.path("base.qcow2"));
    assert!(
        finding.consequence.contains("libvirt for iso, QEMU for qcow2"),
        "{finding:#?}"
    );
    let finding = lab.finding("base.qcow2", Code::FormatAmbiguous);
    assert_at(&finding, Severity::Error, 0, &lab.path("base.qcow2"));
}

#[test]
fn a_missing_backing_image_is_found_by_name_where_it_went() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 base.qcow2 1M");
    lab.img("create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2");
    lab.img("create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2");
    std::fs::create_dir_all(lab.path("store/deep")).unwrap();
    let went = lab.path("store/deep/mid.qcow2");
    std::fs::rename(lab.path("mid.qcow2"), &went).unwrap();
    std::fs::rename(lab.path("base.qcow2"), lab.path("store/deep/base.qcow2")).unwrap();
    let finding = lab.finding("top.qcow2", Code::BackingMissing);
    assert_at(&finding, Severity::Error, 0, &lab.path("top.qcow2"));
    assert!(finding.cause.contains("does not exist; nothing"), "{finding:#?}");
    assert!(
        finding.consequence.contains("Cannot access backing file"),
        "{finding:#?}"
    );
    assert!(finding.cure.commands.is_empty());

    // The chain goes on behind what was found, and its layers are examined too.
    lab.patch("store/deep/base.qcow2", 79, &[1]);
    let policy = Policy::libvirt();
    let options = Options::new(&policy).search([lab.path("store")]);
    let found = examine_fully(&lab.chain("top.qcow2"), &options);
    let finding = one(&found, Code::BackingMissing);
    assert!(
        finding.cause.ends_with(&format!("is at '{}'", went.display())),
        "{finding:#?}"
    );
    assert_eq!(finding.cure.fix, None);
    let dirty = one(&found, Code::Dirty);
    assert_at(&dirty, Severity::Warning, 2, &lab.path("store/deep/base.qcow2"));
    // What the policy does not let be opened is not offered.
    let elsewhere = Policy::parse("p", "[reach]\nfolders = ['/nowhere']").unwrap();
    let options = Options::new(&elsewhere).search([lab.path("store")]);
    let found = examine_fully(&lab.chain("top.qcow2"), &options);
    assert!(one(&found, Code::BackingMissing).cure.commands.is_empty());
    lab.cure("top.qcow2", &finding);
}

#[test]
fn a_renamed_backing_image_is_found_by_format_and_size() {
    let lab = two();
    lab.img("create -q -f qcow2 other.qcow2 2M");
    std::fs::rename(lab.path("base.qcow2"), lab.path("golden.qcow2")).unwrap();
    let finding = lab.finding("top.qcow2", Code::BackingMissing);
    assert!(
        finding
            .cause
            .ends_with(&format!("the overlay's size is '{}'", lab.shown("golden.qcow2"))),
        "{finding:#?}"
    );
    assert!(
        finding.cure.commands[0].contains(&"golden.qcow2".into()),
        "{finding:#?}"
    );
    lab.cure("top.qcow2", &finding);
}

#[test]
fn a_loop_is_an_error_that_names_the_layer_it_comes_back_to() {
    let lab = two();
    lab.img("rebase -u -f qcow2 -b top.qcow2 -F qcow2 base.qcow2");
    let finding = lab.finding("top.qcow2", Code::Loop);
    assert_at(&finding, Severity::Error, 1, &lab.path("base.qcow2"));
    assert!(finding.cause.contains("layer 0"), "{finding:#?}");
}

#[test]
fn long_chains_are_a_warning_and_then_refused_by_the_policy() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 0 1M");
    for number in 1..=200 {
        lab.img(&format!(
            "create -q -u -f qcow2 -b {} -F qcow2 {number} 1M",
            number - 1
        ));
    }
    let policy = Policy::libvirt();
    let length = |top: &str| {
        let found = examine(&lab.chain(top), &Options::new(&policy));
        found
            .iter()
            .find(|finding| finding.code == Code::ChainLong)
            .map(|finding| finding.severity)
    };
    assert_eq!(length("24"), None);
    assert_eq!(length("25"), Some(Severity::Warning));
    assert_eq!(length("199"), Some(Severity::Warning));
    assert_eq!(length("200"), Some(Severity::Warning));
    let shallow = Policy::parse("shallow", "[reach]\ndepth = 3").unwrap();
    let chain = detect(&Start::at(lab.path("10"), None), &shallow);
    let finding = one(&examine(&chain, &Options::new(&shallow)), Code::ChainTooDeep);
    assert_at(&finding, Severity::Error, 2, &lab.path("8"));
}

#[test]
fn a_name_the_policy_refuses_is_not_followed_and_the_way_is_told() {
    let lab = two();
    std::fs::create_dir(lab.path("in")).unwrap();
    lab.img("create -q -f qcow2 -b ../base.qcow2 -F qcow2 in/top.qcow2");
    std::os::unix::fs::symlink("../base.qcow2", lab.path("in/link.qcow2")).unwrap();
    lab.img("create -q -f qcow2 -b link.qcow2 -F qcow2 in/linked.qcow2");
    let inside = lab.path("in").canonicalize().unwrap();
    let policy = Policy::parse("p", &format!("[reach]\nfolders = ['{}']", inside.display())).unwrap();
    for (top, how) in [("top.qcow2", ""), ("linked.qcow2", "leads out)")] {
        let chain = detect(&Start::at(inside.join(top), None), &policy);
        let finding = one(
            &examine_fully(&chain, &Options::new(&policy)),
            Code::ReferenceRefused,
        );
        assert_at(&finding, Severity::Error, 0, &inside.join(top));
        assert!(finding.cause.ends_with(how), "{finding:#?}");
        assert!(finding.cure.advice.as_ref().unwrap().contains("--policy"));
    }
}

#[test]
fn references_that_are_read_differently_or_not_at_all_are_reported() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 base.qcow2 1M");
    lab.run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            r#"json:{"file":{"driver":"file","filename":"base.qcow2"}}"#,
            "top.qcow2",
            "1M",
        ],
    );
    let finding = lab.finding("top.qcow2", Code::ReferenceDiffers);
    assert_at(&finding, Severity::Warning, 0, &lab.path("top.qcow2"));
    // The plain name means the same file.
    assert!(finding.cure.fix.is_some(), "{finding:#?}");
    lab.cure("top.qcow2", &finding);
    lab.img("create -q -u -f qcow2 -F qcow2 -b file:base.qcow2 url.qcow2 1M");
    let finding = lab.finding("url.qcow2", Code::ReferenceDiffers);
    lab.cure("url.qcow2", &finding);
    lab.img("create -q -u -f qcow2 -F qcow2 -b json:{} bad.qcow2 1M");
    let finding = lab.finding("bad.qcow2", Code::ReferenceInvalid);
    assert_at(&finding, Severity::Error, 0, &lab.path("bad.qcow2"));
}

#[test]
fn network_layers_are_not_examined_and_credentials_are_kept_to_themselves() {
    let lab = Lab::new();
    lab.img("create -q -u -f qcow2 -F raw -b nbd://h.test/e nbd.qcow2 1M");
    let finding = lab.finding("nbd.qcow2", Code::NotExamined);
    assert_eq!((finding.severity, finding.layer), (Severity::Note, 1));
    lab.img("create -q -u -f qcow2 -F raw -b http://user:hunter2@h.test/f http.qcow2 1M");
    let found = lab.examine("http.qcow2");
    let finding = one(&found, Code::Credentials);
    assert_at(&finding, Severity::Warning, 0, &lab.path("http.qcow2"));
    assert!(!format!("{found:?}").contains("hunter2"), "{found:#?}");
}

#[test]
fn a_name_outside_the_first_cluster_is_moved_into_it() {
    let lab = two();
    let end = std::fs::metadata(lab.path("top.qcow2"))
        .unwrap()
        .len()
        .next_multiple_of(65_536);
    lab.patch("top.qcow2", end, b"base.qcow2");
    lab.patch("top.qcow2", 8, &end.to_be_bytes());
    let finding = lab.finding("top.qcow2", Code::NameOutsideFirstCluster);
    assert_at(&finding, Severity::Warning, 0, &lab.path("top.qcow2"));
    assert!(finding.cure.fix.is_some());
    // Out there it is beyond what libvirt reads as well.
    lab.finding("top.qcow2", Code::BackingUnseen);
    lab.lacks("top.qcow2", Code::HeaderOdd);
    lab.cure("top.qcow2", &finding);
    lab.lacks("top.qcow2", Code::BackingUnseen);
    lab.img("check -q -f qcow2 top.qcow2");
}

#[test]
fn a_name_that_libvirt_does_not_see_is_an_error() {
    let lab = two();
    lab.header("top.qcow2", |header| {
        header.backing.as_mut().unwrap().offset = 40_000;
    });
    let finding = lab.finding("top.qcow2", Code::BackingUnseen);
    assert_at(&finding, Severity::Error, 0, &lab.path("top.qcow2"));
    lab.lacks("top.qcow2", Code::NameOutsideFirstCluster);
    lab.cure("top.qcow2", &finding);
    lab.img("check -q -f qcow2 top.qcow2");
}

#[test]
fn names_that_are_no_text_are_cured_by_their_bytes() {
    use std::os::unix::ffi::OsStrExt;
    let lab = Lab::new();
    let bash = |line: &str| lab.run("bash", &["-c", line]);
    bash(r"qemu-img create -q -f qcow2 $'base\xff.qcow2' 1M");
    bash(r"qemu-img create -q -f qcow2 -b $'base\xff.qcow2' -F qcow2 $'top\n\x1b\xff.qcow2'");
    let image = lab
        .path("")
        .join(std::ffi::OsStr::from_bytes(b"top\n\x1b\xff.qcow2"));
    std::fs::rename(&image, lab.path("plain")).unwrap();
    lab.forget_format("plain");
    std::fs::rename(lab.path("plain"), &image).unwrap();
    let policy = Policy::libvirt();
    let look = |options: &Options<'_>| examine_fully(&detect(&Start::at(&image, None), &policy), options);
    let lacks = |code| {
        let found = look(&Options::new(&policy));
        assert!(found.iter().all(|finding| finding.code != code), "{found:#?}");
    };
    let finding = one(&look(&Options::new(&policy)), Code::FormatNotRecorded);
    let lines: Vec<_> = finding.cure.command_lines().collect();
    assert_eq!(lines.len(), 1, "{finding:#?}");
    assert!(!lines[0].contains(['\u{fffd}', '\n', '\u{1b}']), "{lines:?}");
    bash(&lines[0]);
    lacks(Code::FormatNotRecorded);

    // Found elsewhere again.
    std::fs::create_dir(lab.path("sub")).unwrap();
    bash(r"mv $'base\xff.qcow2' sub/");
    let options = Options::new(&policy).search([lab.path("sub")]);
    let finding = one(&look(&options), Code::BackingMissing);
    assert_eq!(finding.cure.commands.len(), 1, "{finding:#?}");
    finding.cure.command_lines().for_each(|line| bash(&line));
    lacks(Code::BackingMissing);
}
