//! Injects the sidecar into agent pods and streams to each the policies that govern it.
