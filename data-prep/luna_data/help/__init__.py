"""The pages of the LibreOffice help: which sentences make them up, and the pages as running text."""
