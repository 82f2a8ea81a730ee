//! Where the store is and how to use it.
