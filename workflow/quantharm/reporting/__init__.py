"""What the stage `report` is made of: results read, judged, put into tables, charts and words."""
