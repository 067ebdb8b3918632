//! Builders and oracles for the tests of Catena.
