//! Command lines as the C library's `getopt_long` takes them apart, with its sentences for what is wrong.
//!
//! Options and other words may be mixed; `--` ends the options. A long option may be cut short as long as it is clear which is
//! meant. Nothing is decided here about what options mean.

use std::collections::VecDeque;

/// Whether an option takes an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// None.
    Nothing,
    /// One.
    Argument,
}

/// A long option. Several may have the same key, which is a short option's letter where there is one.
#[derive(Clone, Copy, Debug)]
pub struct Long {
    /// Without the dashes.
    pub name: &'static str,
    /// Whether it takes an argument.
    pub takes: Takes,
    /// What it is known by.
    pub key: Key,
}

/// What an option is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A short option's letter.
    Letter(char),
    /// A long option without a letter.
    Word(&'static str),
    /// A word that is no option, of a parser that hands these out in their turn.
    Operand,
}

/// All options of a command.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Letters, each followed by `:` where it takes an argument.
    pub short: &'static str,
    /// Long options, in the order in which messages list them.
    pub long: &'static [Long],
}

/// A long option with a letter.
pub const fn long(name: &'static str, letter: char, takes: Takes) -> Long {
    Long {
        name,
        takes,
        key: Key::Letter(letter),
    }
}

/// A long option that has no letter.
pub const fn word(name: &'static str, takes: Takes) -> Long {
    Long {
        name,
        takes,
        key: Key::Word(name),
    }
}

/// A command line that is being taken apart.
#[derive(Debug)]
pub struct Parser {
    options: Options,
    words: VecDeque<String>,
    /// Letters of a word that are still to be looked at.
    letters: Option<String>,
    /// The words that are no options.
    others: Vec<String>,
    /// Whether the first word that is no option ends the options.
    strict: bool,
    /// Whether words that are no options are handed out in their turn.
    in_order: bool,
}

impl Parser {
    /// Of these words, the command's name not among them.
    pub fn new(options: Options, words: impl IntoIterator<Item = String>) -> Self {
        Self {
            options,
            words: words.into_iter().collect(),
            letters: None,
            others: Vec::new(),
            strict: std::env::var_os("POSIXLY_CORRECT").is_some(),
            in_order: false,
        }
    }

    /// Stops at the first word that is no option.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Hands out words that are no options in their turn, as [`Key::Operand`]; only those behind `--` come at the end.
    pub fn in_order(mut self) -> Self {
        self.in_order = true;
        self.strict = false;
        self
    }

    /// The word that would be looked at next, unless letters of the last one are left.
    pub fn peek(&self) -> Option<&str> {
        match self.letters {
            None => self.words.front().map(String::as_str),
            Some(_) => None,
        }
    }

    /// Takes the word that [`Parser::peek`] shows as an argument.
    pub fn take(&mut self) -> Option<String> {
        self.words.pop_front()
    }

    /// The next option with its argument, `None` behind the last. An error is what follows the program's name in its message.
    pub fn next(&mut self) -> Result<Option<(Key, String)>, String> {
        if let Some(letters) = self.letters.take() {
            return self.letter(&letters).map(Some);
        }
        while let Some(word) = self.words.pop_front() {
            if word == "--" {
                self.others.extend(self.words.drain(..));
            } else if let Some(long) = word.strip_prefix("--") {
                return self.long(long).map(Some);
            } else if let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) {
                return self.letter(letters).map(Some);
            } else if self.in_order {
                return Ok(Some((Key::Operand, word)));
            } else if self.strict {
                self.others.push(word);
                self.others.extend(self.words.drain(..));
            } else {
                self.others.push(word);
            }
        }
        Ok(None)
    }

    /// The words that are no options, in their order, once there is no option left.
    pub fn others(self) -> Vec<String> {
        self.others
    }

    fn letter(&mut self, letters: &str) -> Result<(Key, String), String> {
        let mut rest = letters.chars();
        let letter = rest.next().unwrap_or_default();
        let rest = rest.as_str();
        let mut known = self.options.short.chars();
        let takes = match known.find(|known| *known == letter && letter != ':') {
            None => {
                self.keep(rest);
                return Err(format!("invalid option -- '{letter}'"));
            }
            Some(_) if known.next() == Some(':') => Takes::Argument,
            Some(_) => Takes::Nothing,
        };
        let argument = match takes {
            Takes::Nothing => {
                self.keep(rest);
                String::new()
            }
            Takes::Argument if !rest.is_empty() => rest.to_owned(),
            Takes::Argument => self
                .words
                .pop_front()
                .ok_or_else(|| format!("option requires an argument -- '{letter}'"))?,
        };
        Ok((Key::Letter(letter), argument))
    }

    fn keep(&mut self, letters: &str) {
        self.letters = Some(letters.to_owned()).filter(|letters| !letters.is_empty());
    }

    fn long(&mut self, text: &str) -> Result<(Key, String), String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let found = self.find(name, text)?;
        match (found.takes, value) {
            (Takes::Nothing, Some(_)) => Err(format!("option '--{}' doesn't allow an argument", found.name)),
            (Takes::Nothing, None) => Ok((found.key, String::new())),
            (Takes::Argument, Some(value)) => Ok((found.key, value)),
            (Takes::Argument, None) => match self.words.pop_front() {
                Some(value) => Ok((found.key, value)),
                None => Err(format!("option '--{}' requires an argument", found.name)),
            },
        }
    }

    fn find(&self, name: &str, text: &str) -> Result<Long, String> {
        let all = self.options.long;
        if let Some(exact) = all.iter().find(|long| long.name == name) {
            return Ok(*exact);
        }
        let possible: Vec<_> = all.iter().filter(|long| long.name.starts_with(name)).collect();
        match possible.as_slice() {
            [] => Err(format!("unrecognized option '--{text}'")),
            [first, others @ ..]
                if others
                    .iter()
                    .all(|other| (other.key, other.takes) == (first.key, first.takes)) =>
            {
                Ok(**first)
            }
            possible => {
                let names: String = possible
                    .iter()
                    .map(|long| format!(" '--{}'", long.name))
                    .collect();
                Err(format!("option '--{text}' is ambiguous; possibilities:{names}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Takes::{Argument, Nothing};
    use super::*;

    const OPTIONS: Options = Options {
        short: "hf:U",
        long: &[
            long("help", 'h', Nothing),
            long("format", 'f', Argument),
            long("force-share", 'U', Nothing),
            word("output", Argument),
        ],
    };

    type Parsed = (Vec<(Key, String)>, Vec<String>);

    fn parse(words: &[&str]) -> Result<Parsed, String> {
        let mut parser = Parser::new(OPTIONS, words.iter().map(|word| (*word).to_owned()));
        let mut found = Vec::new();
        while let Some(option) = parser.next()? {
            found.push(option);
        }
        Ok((found, parser.others()))
    }

    #[test]
    fn options_and_other_words_may_be_mixed() {
        let (options, others) = parse(&["a", "-Ufraw", "b", "--out=x", "--", "-U"]).unwrap();
        assert_eq!(
            options,
            [
                (Key::Letter('U'), String::new()),
                (Key::Letter('f'), "raw".to_owned()),
                (Key::Word("output"), "x".to_owned())
            ]
        );
        assert_eq!(others, ["a", "b", "-U"]);
    }

    #[test]
    fn what_is_wrong_is_said_as_the_c_library_says_it() {
        let said = |words: &[&str]| parse(words).unwrap_err();
        assert_eq!(said(&["-x"]), "invalid option -- 'x'");
        assert_eq!(said(&["-f"]), "option requires an argument -- 'f'");
        assert_eq!(said(&["--help=1"]), "option '--help' doesn't allow an argument");
        assert_eq!(said(&["--form"]), "option '--format' requires an argument");
        assert_eq!(said(&["--nope=1"]), "unrecognized option '--nope=1'");
        assert_eq!(
            said(&["--fo"]),
            "option '--fo' is ambiguous; possibilities: '--format' '--force-share'"
        );
    }
}
