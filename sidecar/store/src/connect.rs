//! Finds the master of the store and connects to it.
