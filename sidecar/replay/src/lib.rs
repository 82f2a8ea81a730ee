//! Decides the calls of an audit log anew, by other policies, with the times at which they came.
