//! What is timed: command lines that both programs understand.

use crate::images::Fresh;

/// A command line, and what it changes.
pub struct Job {
    /// What the table calls it.
    pub name: &'static str,
    /// The words after the program's name.
    pub words: &'static str,
    /// The images that it changes.
    pub fresh: Fresh,
}

const fn job(name: &'static str, words: &'static str) -> Job {
    Job {
        name,
        words,
        fresh: &[],
    }
}

const fn changing(name: &'static str, words: &'static str, fresh: Fresh) -> Job {
    Job { name, words, fresh }
}

/// All jobs.
pub fn all() -> Vec<Job> {
    vec![
        job("create", "create -q -f qcow2 out 1T"),
        job("create over a chain", "create -q -f qcow2 -b deep99 -F qcow2 out"),
        job(
            "create, metadata preallocated",
            "create -q -f qcow2 -o preallocation=metadata out 64G",
        ),
        job("info of a chain", "info --backing-chain deep99"),
        job("map", "map --output=json data.qcow2"),
        job("map of a chain", "map --output=json deep99"),
        job("check, 64 KiB clusters", "check data.qcow2"),
        job("check, 4 KiB clusters", "check small.qcow2"),
        job("check, 64 GiB of 4 KiB clusters", "check huge.qcow2"),
        job("convert raw to qcow2", "convert -f raw -O qcow2 data.raw out"),
        job("convert qcow2 to raw", "convert -f qcow2 -O raw data.qcow2 out"),
        job(
            "convert qcow2 to qcow2",
            "convert -f qcow2 -O qcow2 data.qcow2 out",
        ),
        job(
            "convert 4 KiB clusters to raw",
            "convert -f qcow2 -O raw small.qcow2 out",
        ),
        job("convert a chain", "convert -f qcow2 -O qcow2 deep99 out"),
        job(
            "convert compressed to raw",
            "convert -f qcow2 -O raw packed.qcow2 out",
        ),
        job("convert, compressing", "convert -c -f raw -O qcow2 data.raw out"),
        job(
            "convert, compressing by zstd",
            "convert -c -f raw -O qcow2 -o compression_type=zstd data.raw out",
        ),
        job("compare the same content", "compare data.raw data.qcow2"),
        job("compare overlays of one base", "compare top.qcow2 other.qcow2"),
        job("measure", "measure -O qcow2 data.qcow2"),
        changing("commit", "commit -q over.qcow2", &["over.qcow2", "base.qcow2"]),
        changing(
            "rebase onto a near base",
            "rebase -b newbase.qcow2 -F qcow2 top.qcow2",
            &["top.qcow2"],
        ),
        changing("rebase onto nothing", "rebase -b  top.qcow2", &["top.qcow2"]),
        changing("snapshot", "snapshot -c now base.qcow2", &["base.qcow2"]),
    ]
}
