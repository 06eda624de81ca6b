// In place of the theme's file of this name, 1.5 MB of pictures for icons: its style
// sheet has the same icons as a font, which is what pages show without that script.
