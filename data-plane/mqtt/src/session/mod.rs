//! What a server does with packets.
