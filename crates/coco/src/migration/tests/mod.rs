mod counts;
mod random;
mod rules;
mod scenarios;
mod status;
