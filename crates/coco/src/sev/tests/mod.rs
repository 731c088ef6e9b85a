mod commands;
mod migration;
mod reclaim;
mod regions;
