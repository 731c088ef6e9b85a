mod commands;
mod migration;
mod regions;
