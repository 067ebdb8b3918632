//! Many chains at once, and mending.

use crate::lab::{Lab, assert_at, one, two};
use catena::Policy;
use catena::doctor::{Code, Options, Report, Severity, mends, survey};
use std::os::unix::fs::symlink;

fn look(lab: &Lab, targets: &[&str]) -> Vec<Report> {
    let policy = Policy::libvirt();
    let targets: Vec<_> = targets.iter().map(|name| lab.path(name)).collect();
    survey(&targets, None, &Options::new(&policy))
}

fn names(lab: &Lab, reports: &[Report]) -> Vec<String> {
    let names = reports.iter().map(|report| {
        let path = report.target.strip_prefix(lab.path("")).unwrap();
        path.display().to_string()
    });
    names.collect()
}

#[test]
fn a_folder_is_its_chains_and_a_shared_layer_is_reported_once() {
    let lab = two();
    std::fs::create_dir(lab.path("sub")).unwrap();
    lab.img("create -q -f qcow2 -b ../base.qcow2 -F qcow2 sub/other.qcow2");
    lab.img("create -q -f raw alone.img 1M");
    std::fs::write(lab.path("notes.txt"), "no image").unwrap();
    symlink(".", lab.path("again")).unwrap();
    symlink("top.qcow2", lab.path("link.qcow2")).unwrap();
    lab.patch("base.qcow2", 79, &[1]);
    let reports = look(&lab, &[""]);
    assert_eq!(
        names(&lab, &reports),
        ["sub/other.qcow2", "top.qcow2", "alone.img"]
    );
    let dirty = reports
        .iter()
        .flat_map(|report| &report.findings)
        .filter(|finding| finding.code == Code::Dirty);
    assert_eq!(dirty.count(), 1, "{reports:#?}");
}

#[test]
fn images_that_back_each_other_are_examined_too() {
    let lab = two();
    lab.img("rebase -u -f qcow2 -b top.qcow2 -F qcow2 base.qcow2");
    let reports = look(&lab, &[""]);
    assert_eq!(names(&lab, &reports), ["base.qcow2"]);
    one(&reports[0].findings, Code::Loop);
}

#[test]
fn what_a_refused_image_of_a_folder_names_is_not_followed_from_it() {
    let lab = Lab::new();
    std::fs::create_dir_all(lab.path("folder")).unwrap();
    lab.img("create -q -f qcow2 secret.qcow2 1M");
    lab.img("create -q -f qcow2 -b ../secret.qcow2 -F qcow2 folder/disk.img");
    lab.img("create -q -f qcow2 -b disk.img -F qcow2 folder/top.qcow2");
    lab.forget_format("folder/top.qcow2");
    lab.patch("folder/disk.img", 79, &[1]);
    let reports = look(&lab, &["folder"]);
    assert_eq!(names(&lab, &reports), ["folder/top.qcow2", "folder/disk.img"]);
    let refused = one(&reports[0].findings, Code::FormatNotRecorded);
    assert_eq!(refused.severity, Severity::Error);
    assert_eq!(reports[1].chain.layers.len(), 1);
    let codes: Vec<_> = reports[1].findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, [Code::Dirty]);
}

#[test]
fn one_file_under_two_names_is_reported() {
    let lab = two();
    std::fs::hard_link(lab.path("base.qcow2"), lab.path("golden.qcow2")).unwrap();
    lab.img("create -q -f qcow2 -b golden.qcow2 -F qcow2 other.qcow2");
    let reports = look(&lab, &["top.qcow2", "other.qcow2"]);
    let finding = one(&reports[1].findings, Code::SameImage);
    assert_eq!((finding.severity, finding.layer), (Severity::Warning, 1));
    symlink("base.qcow2", lab.path("soft.qcow2")).unwrap();
    lab.img("create -q -f qcow2 -b soft.qcow2 -F qcow2 third.qcow2");
    let reports = look(&lab, &["top.qcow2", "third.qcow2"]);
    let finding = one(&reports[1].findings, Code::SameImage);
    assert_eq!((finding.severity, finding.layer), (Severity::Note, 1));
}

#[test]
fn a_target_that_is_not_there_is_reported_and_the_others_are_examined() {
    let lab = two();
    std::fs::create_dir_all(lab.path("sub/deeper")).unwrap();
    std::fs::copy(lab.path("base.qcow2"), lab.path("sub/deeper/moved.qcow2")).unwrap();
    lab.patch("base.qcow2", 79, &[1]);
    let reports = look(&lab, &["moved.qcow2", "top.qcow2", "top.qcow2/x"]);
    let missing = one(&reports[0].findings, Code::ImageMissing);
    assert_at(&missing, Severity::Error, 0, &lab.path("moved.qcow2"));
    one(&reports[1].findings, Code::Dirty);
    let odd = one(&reports[2].findings, Code::ImageMissing);
    assert_at(&odd, Severity::Error, 0, &lab.path("top.qcow2/x"));

    let policy = Policy::libvirt();
    let options = Options::new(&policy).search([lab.path("sub")]);
    let reports = survey(&[lab.path("moved.qcow2")], None, &options);
    let missing = one(&reports[0].findings, Code::ImageMissing);
    assert!(
        missing.cause.contains(&lab.shown("sub/deeper/moved.qcow2")),
        "{missing:#?}"
    );
}

#[test]
fn mending_writes_each_header_once_the_deepest_first() {
    let lab = Lab::new();
    lab.img("create -q -f qcow2 base.qcow2 1M");
    lab.img("create -q -f qcow2 -b base.qcow2 -F qcow2 mid.qcow2");
    lab.img("create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2");
    lab.forget_format("mid.qcow2");
    for name in ["mid.qcow2", "top.qcow2"] {
        let end = std::fs::metadata(lab.path(name))
            .unwrap()
            .len()
            .next_multiple_of(65_536);
        let below: &[u8] = if name == "mid.qcow2" {
            b"base.qcow2"
        } else {
            b"mid.qcow2"
        };
        lab.patch(name, end, below);
        lab.patch(name, 8, &end.to_be_bytes());
    }
    let expected = std::fs::read(lab.path("base.qcow2")).unwrap();
    let reports = look(&lab, &["top.qcow2"]);
    let mends = mends(&reports);
    let order: Vec<_> = mends.iter().map(|mend| mend.fix.image.clone()).collect();
    assert_eq!(order, [lab.path("mid.qcow2"), lab.path("top.qcow2")]);
    assert_eq!(mends[0].codes.len(), 3, "{mends:#?}");
    for mend in &mends {
        let plan = mend.plan(&Policy::libvirt()).unwrap();
        assert!(!plan.is_done());
        plan.execute().unwrap();
        assert!(mend.plan(&Policy::libvirt()).unwrap().is_done());
    }
    assert!(std::fs::read(lab.path("base.qcow2")).unwrap() == expected);
    let reports = look(&lab, &["top.qcow2"]);
    assert!(
        reports[0]
            .findings
            .iter()
            .all(|finding| finding.cure.fix.is_none()),
        "{reports:#?}"
    );
    for name in ["mid.qcow2", "top.qcow2"] {
        lab.img(&format!("check -q -f qcow2 {name}"));
    }
}
