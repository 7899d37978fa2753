"""Yes/no questions of a task in the formats of other toolkits, which open the folders as they are."""
