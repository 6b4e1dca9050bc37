"""Files in and out: pictures, their metadata and provenance, records, writes that are whole or not at all."""
