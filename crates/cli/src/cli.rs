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
