//! The command line as a whole: its verbs, and the options they share.

use crate::commands;
use clap::ValueEnum;

/// What the help ends with; a verb whose exit statuses differ says so in its own.
const EXIT_STATUS: &str = "\
Exit status:
  0  done, and nothing is wrong
  1  it could not be done, or something is wrong; standard error or the output
     says what, and what to do next
  2  the command line is wrong
130  stopped with Ctrl-C";

/// Understand, vet and mend chains of virtual-machine disk images.
#[derive(Debug, clap::Parser)]
#[command(name = "catena", version, max_term_width = 100, after_help = EXIT_STATUS)]
pub struct Cli {
    /// When to use colours: auto (on a terminal, unless NO_COLOR is set), always or never
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "WHEN",
        hide_possible_values = true
    )]
    pub color: Color,
    /// What to do.
    #[command(subcommand)]
    pub command: commands::Command,
}

/// When output is coloured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal.
    #[default]
    Auto,
    /// Whatever the output is.
    Always,
    /// Not at all.
    Never,
}

impl Color {
    /// Makes it so for everything printed from here on.
    pub fn write_global(self) {
        match self {
            Self::Auto => anstream::ColorChoice::Auto,
            Self::Always => anstream::ColorChoice::Always,
            Self::Never => anstream::ColorChoice::Never,
        }
        .write_global();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }

    /// clap does not ask for what an option requires where that conflicts with something else that is given.
    #[test]
    fn options_that_would_do_nothing_beside_others_are_refused() {
        for line in [
            "show vm.qcow2 --disk vda",
            "show vm.qcow2 --connect qemu:///system",
            "show vm.qcow2 --libvirt 9.0",
            "show --domain vm.xml --format raw",
            "blockdev vm.qcow2 --disk vda",
            "blockdev vm.qcow2 --connect qemu:///system",
            "blockdev --domain vm.xml --format raw",
            "access vm.qcow2 --disk vda",
            "access vm.qcow2 --connect qemu:///system",
            "access --domain vm.xml --format raw",
            "access --domain vm.xml --read-only",
            "access vm.qcow2 --output json --dry-run",
            "access --undo file --dry-run",
            "access --undo file --disk vda",
            "access --undo file --user alice",
            "access --undo file --undo-file other",
            "snapshot-xml vm.xml --domain other",
            "snapshot-xml vm.xml --output json",
            "snapshot-xml --check file --name monday",
            "snapshot-xml --check file --taken",
            "snapshot --domain vm.xml --output json",
            "snapshot --domain vm.xml --names {stem}",
            "snapshot --domain vm.xml --raw file",
            "rebase vm.qcow2 --no-backing -F qcow2",
            "relink vm.qcow2 --no-backing -F qcow2",
            "measure --size 1G --format raw",
            "measure --size 1G --snapshot 1",
            "convert vm.qcow2 new --existing -F qcow2",
            "import bundle --verify -F qcow2",
        ] {
            let words = std::iter::once("catena").chain(line.split(' '));
            let error = <Cli as clap::Parser>::try_parse_from(words)
                .map(drop)
                .unwrap_err();
            assert_eq!(
                error.kind(),
                clap::error::ErrorKind::ArgumentConflict,
                "{line}: {error}"
            );
        }
    }

    #[test]
    fn what_follows_the_options_fits_a_terminal_as_it_is_written() {
        let mut command = Cli::command();
        command.build();
        let subcommands: Vec<_> = command.get_subcommands().cloned().collect();
        for verb in subcommands.iter().chain([&command]) {
            for text in [verb.get_after_help(), verb.get_after_long_help()]
                .into_iter()
                .flatten()
            {
                for line in text.to_string().lines() {
                    assert!(line.chars().count() <= 78, "{}: {line}", verb.get_name());
                }
            }
        }
    }
}
