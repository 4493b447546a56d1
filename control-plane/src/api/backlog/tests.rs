use tbmq_integration::cleanup::{Goal, Stage, TopicLife};

use super::*;
