//! The policy files that `docs/policy.md` shows are policy files, and those it gives for the named policies are those.
#![cfg(test)]

use catena::Policy;

fn shown() -> Vec<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/policy.md")).unwrap();
    let mut files = Vec::new();
    let mut rest = page.as_str();
    while let Some((_, from)) = rest.split_once("```toml\n") {
        let (file, after) = from.split_once("```").unwrap();
        files.push(file.to_owned());
        rest = after;
    }
    files
}

#[test]
fn every_policy_file_on_the_page_is_one() {
    let files = shown();
    assert_eq!(files.len(), 6);
    for file in files {
        Policy::parse("page", &file).unwrap();
    }
}

#[test]
fn the_named_policies_are_as_the_page_writes_them() {
    let files = shown();
    // The first shows every key with its default.
    assert_eq!(Policy::parse("libvirt", &files[0]).unwrap(), Policy::libvirt());
    assert_eq!(Policy::parse("libvirt", &files[1]).unwrap(), Policy::libvirt());
    assert_eq!(Policy::parse("strict", &files[2]).unwrap(), Policy::strict());
}
